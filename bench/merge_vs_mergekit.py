"""merge.vs_mergekit: the same recipes over three experts of 0.85 B parameters, here and in mergekit 0.1.5.

In memory: mergekit, which hands on a merge as files only, against merging into a live model here as a search does,
candidate after candidate, with the sources' statistics known (`first_memory` is the seconds of the first merge, which
finds them out); `times_as_fast_without_its_writing` leaves out what mergekit spends in its tensor writer. To disk:
writing the checkpoint here, statistics included, against plainly writing and syncing as many bytes, and against
mergekit; a disk is not the same twice, so ours and the plain write take turns, each first in every other one, after a
sync of all there is. `times_a_write_past_the_page_cache` is against the fastest write that we know of, which is how
ours goes to the disk too. Imports are left out on both sides, both have as many threads, and the sources are in the
page cache. Both do the same work: the recipe has them compute in float32 and round once. (With `dtype: bfloat16`
mergekit rounds after every step: its linear is faster then, its slerp slower; here nothing changes.)

It takes 10 to 15 minutes: mergekit needs about 200 s for one TIES; leave it out with --methods.
EVOMERGE_MERGEKIT_PYTHON names the interpreter of mergekit's environment.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import yaml
from figures import figure
from merge import CPU, merge_seconds
from merge_recipes import TIMED, recipe, write_models

from evomerge_contract.recipe import Recipe
from evomerge_worker.families.live import LiveModel
from evomerge_worker.merge import export_checkpoint
from evomerge_worker.pages import huge_pages
from evomerge_worker.shards import Checkpoint

HERE = Path(__file__).parent
MERGEKIT = os.environ.get("EVOMERGE_MERGEKIT_PYTHON", str(HERE.parent / ".venv-mergekit" / "bin" / "python"))
BLOCK = 4096  # what a write past the page cache consists of
GOALS = {"linear": ">= 40", "ties": ">= 200"}
SLOW = ("ties", "dare_ties")
"""These are measured once: a ratio of a hundred needs no third repeat of three minutes each."""


class Round(NamedTuple):
    """Seconds of one round of one method."""

    theirs: float
    theirs_writing: float
    first_memory: float
    memory: float


class Written(NamedTuple):
    """Seconds of one turn of writing."""

    ours: float
    plain: float  # writing and syncing the same bytes
    direct: float  # the same past the page cache


def main() -> None:
    """Measure and print, method by method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=TIMED, default=list(TIMED))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--turns", type=int, default=6, help="turns of writing to disk")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", type=Path, help="keep the models in this folder, and use them if they are there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="evomerge-bench-") as temporary:
        models = write_models(options.models or Path(temporary))
        checkpoints = {name: Checkpoint.open(path, name) for name, path in models.items()}
        for method in options.methods:
            repeats = 1 if method in SLOW else options.repeats
            rounds = [one_round(method, checkpoints, Path(temporary), options.threads) for _ in range(repeats)]
            turns = [one_turn(method, checkpoints, Path(temporary), turn) for turn in range(options.turns + 1)]
            report(method, rounds, turns[1:])  # the first one warms up


def one_round(method: str, checkpoints: dict[str, Checkpoint], folder: Path, threads: int) -> Round:
    """Merge once there and twice in memory here."""
    theirs = mergekit_seconds(method, checkpoints, folder, threads)
    live = LiveModel.open(checkpoints["base"], device=CPU)
    merge_seconds(live, checkpoints, "linear", density=1.0)  # sources into the page cache
    first_memory = merge_seconds(live, checkpoints, method, density=0.4)
    memory = merge_seconds(live, checkpoints, method, density=0.5)
    return Round(theirs["seconds"], theirs["writing"], first_memory, memory)


def one_turn(method: str, checkpoints: dict[str, Checkpoint], folder: Path, turn: int) -> Written:
    """Merge to disk here and write plainly, in this order or, every other turn, the other one."""
    weights = checkpoints["base"].folder / "model.safetensors"
    size = weights.stat().st_size // BLOCK * BLOCK
    content = huge_pages(size)[:size].copy_(torch.from_file(str(weights), size=size, dtype=torch.uint8)).numpy().data
    parts: list[Callable[[], float]] = [
        lambda: disk_seconds(method, checkpoints, folder),
        lambda: write_seconds(content, folder / "plain"),
        lambda: write_seconds(content, folder / "plain", os.O_DIRECT),
    ]
    order = range(len(parts))
    seconds = {place: parts[place]() for place in (reversed(order) if turn % 2 else order)}
    return Written(*(seconds[place] for place in order))


def mergekit_seconds(method: str, checkpoints: dict[str, Checkpoint], folder: Path, threads: int) -> dict[str, float]:
    """What reference/mergekit_merge.py says."""
    names = {name: str(checkpoint.folder.resolve()) for name, checkpoint in checkpoints.items()}
    asked = folder / "recipe.yaml"
    asked.write_text(yaml.safe_dump(recipe(method, names)), "utf-8")
    out = folder / "theirs"
    ended = subprocess.run(
        [MERGEKIT, str(HERE / "reference" / "mergekit_merge.py"), str(asked), str(out), str(threads)],
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    shutil.rmtree(out)
    said: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return said


def disk_seconds(method: str, checkpoints: dict[str, Checkpoint], folder: Path) -> float:
    """Seconds to write the merged checkpoint, synced."""
    asked = Recipe.model_validate(recipe(method, {name: name for name in checkpoints}))
    os.sync()
    began = time.perf_counter()
    export_checkpoint(asked, checkpoints, folder / "ours", mask_seed=0)
    took = time.perf_counter() - began
    shutil.rmtree(folder / "ours")
    return took


def write_seconds(content: memoryview, out: Path, how: int = 0) -> float:
    """Seconds to write and sync `content`, from where a block begins."""
    os.sync()
    began = time.perf_counter()
    file = os.open(out, os.O_WRONLY | os.O_CREAT | how)
    for start in range(0, len(content), 1 << 24):
        os.write(file, content[start : start + (1 << 24)])
    os.fsync(file)
    os.close(file)
    took = time.perf_counter() - began
    out.unlink()
    return took


def report(method: str, rounds: list[Round], turns: list[Written]) -> None:
    """The two figures of a method."""
    medians = {f: round(statistics.median(getattr(r, f) for r in rounds), 3) for f in Round._fields}
    figure(
        "merge_vs_mergekit",
        f"merge.vs_mergekit.memory.{method}",
        [r.theirs / r.memory for r in rounds],
        "times as fast",
        reference="mergekit 0.1.5, which writes its result",
        goal=GOALS.get(method, ""),
        seconds=medians,
        times_as_fast_without_its_writing=round(
            statistics.median((r.theirs - r.theirs_writing) / r.memory for r in rounds), 1
        ),
    )
    figure(
        "merge_vs_mergekit",
        f"merge.vs_mergekit.disk.{method}",
        [turn.ours / turn.plain for turn in turns],
        "times the plain write",
        reference="writing and syncing the same bytes",
        goal="<= 1.2",
        seconds=[round(turn.ours, 2) for turn in turns],
        plain_seconds=[round(turn.plain, 2) for turn in turns],
        times_a_write_past_the_page_cache=round(statistics.median(turn.ours / turn.direct for turn in turns), 2),
        times_as_fast_as_mergekit=round(
            statistics.median(r.theirs for r in rounds) / statistics.median(turn.ours for turn in turns), 1
        ),
    )


if __name__ == "__main__":
    main()
