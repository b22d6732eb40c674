"""merge.memory: what a merge of three experts of 0.85 B parameters takes beside the mapped files of its sources.

Measured is the peak of anonymous memory (RssAnon, looked at every few milliseconds) in a process of its own, less what
it had after its imports, against the bytes of one model: of merging into a live model, which is loaded there; of the
same where layers move, so that each merge is a model of its own; and of `evomerge merge` to a disk, that is of writing
the checkpoint.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from figures import figure
from merge_recipes import WAYS, recipe, write_models

from evomerge_contract.recipe import Recipe
from evomerge_worker.families.live import LiveModel
from evomerge_worker.merge import export_checkpoint
from evomerge_worker.shards import Checkpoint

_LOOK_SECONDS = 0.003


def main() -> None:
    """Measure and print, a process for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", type=Path, help="keep the models in this folder, and use them if they are there")
    parser.add_argument("--child", choices=MERGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        torch.set_num_threads(options.threads)
        print(json.dumps(peak_of(lambda: MERGES[options.child](options.models, options.methods[0]))))
        return
    with tempfile.TemporaryDirectory(prefix="evomerge-bench-") as temporary:
        folder = options.models or Path(temporary)
        model_bytes = (write_models(folder)["base"] / "model.safetensors").stat().st_size
        for method in options.methods:
            for kind in MERGES:
                report(method, kind, peak_in_child(method, kind, folder, options.threads), model_bytes)


def report(method: str, kind: str, peak: int, model_bytes: int) -> None:
    """The figure of one process."""
    figure(
        "merge_memory",
        f"merge.memory.{kind}.{method}",
        peak / model_bytes,
        "times one model",
        reference="the bytes of one model; sources are mapped",
        goal="<= 1" if kind == "disk" else "<= 1.2",
        gigabytes=round(peak / 1e9, 2),
    )


def peak_in_child(method: str, kind: str, folder: Path, threads: int) -> int:
    """The peak of a merge in a fresh process, in bytes."""
    command = [sys.executable, __file__, "--child", kind, "--methods", method, "--models", str(folder)]
    ended = subprocess.run([*command, "--threads", str(threads)], stdout=subprocess.PIPE, check=True, text=True)
    return int(json.loads(ended.stdout.splitlines()[-1]))


def live(folder: Path, method: str) -> None:
    """Merge into a live model, twice."""
    checkpoints = _opened(folder)
    model = LiveModel.open(checkpoints["base"], device=torch.device("cpu"))
    for density in (0.4, 0.6):
        model.merge(_asked(method, checkpoints, density), checkpoints, mask_seed=0)


def moved(folder: Path, method: str) -> None:
    """Merge twice into a live model whose layers stand elsewhere than in the sources; it has as many as they."""
    checkpoints = _opened(folder)
    layers = checkpoints["base"].layout.layers
    model = LiveModel.open(checkpoints["base"], device=torch.device("cpu"))
    for density, ranges in ((0.4, ((0, 2), (1, layers - 1))), (0.6, ((0, 3), (1, layers - 2)))):
        model.merge(_sliced(_asked(method, checkpoints, density), ranges), checkpoints, mask_seed=0)


def disk(folder: Path, method: str) -> None:
    """Write the merged checkpoint."""
    checkpoints = _opened(folder)
    with tempfile.TemporaryDirectory(prefix="evomerge-bench-") as out:
        export_checkpoint(_asked(method, checkpoints, 0.4), checkpoints, Path(out) / "merged", mask_seed=0)


MERGES: dict[str, Callable[[Path, str], None]] = {"live": live, "moved": moved, "disk": disk}


def peak_of(work: Callable[[], None]) -> int:
    """The most anonymous memory that `work` takes, in bytes."""
    before, seen, done = anonymous(), [0], threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.append(max(anonymous(), seen.pop()))
            time.sleep(_LOOK_SECONDS)

    looking = threading.Thread(target=look)
    looking.start()
    work()
    done.set()
    looking.join()
    return seen[0] - before


def anonymous() -> int:
    """Bytes of this process in memory that belong to no file."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def _opened(folder: Path) -> dict[str, Checkpoint]:
    return {name: Checkpoint.open(path, name) for name, path in write_models(folder).items()}


def _asked(method: str, checkpoints: dict[str, Checkpoint], density: float) -> Recipe:
    return Recipe.model_validate(recipe(method, {name: name for name in checkpoints}, density))


def _sliced(recipe: Recipe, ranges: Sequence[tuple[int, int]]) -> Recipe:
    """The recipe over these layers of all its models."""
    wire = recipe.model_dump(exclude_none=True)
    sources = wire.pop("models")
    if recipe.base_model not in (None, *(source["model"] for source in sources)):
        sources.append({"model": recipe.base_model})
    wire["slices"] = [{"sources": [source | {"layer_range": r} for source in sources]} for r in ranges]
    return Recipe.model_validate(wire)


if __name__ == "__main__":
    main()
