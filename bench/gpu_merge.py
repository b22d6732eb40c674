"""gpu.merge: merging three sources of 7 B parameters that lie in a GPU's memory, against that memory's bandwidth.

The reference copies as many bytes from the GPU's memory to itself as a merge has to read and write there: linear reads
three models and writes one, TIES reads the base too. TIES is asked each time for a density never used before, with the
sources' order statistics known. Sources and result lie in the GPU's memory (13.5 GB a model: 80 GB are needed for
TIES), as a session has them that merges in place; what it takes to bring them there is left out.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from figures import figure
from merge import in_turn, ratios
from merge_recipes import EXPERTS, recipe
from random_models import config
from torch import Tensor
from transformers import LlamaForCausalLM

from evomerge_contract.recipe import Recipe
from evomerge_worker.merge.plan import plan_merge
from evomerge_worker.merge.run import Merger
from evomerge_worker.merge.statistics_cache import Statistics
from evomerge_worker.shards import Checkpoint

GOALS = {"linear": "<= 1.2", "ties": "<= 2"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this bench measures a GPU, and torch finds none here")
    with tempfile.TemporaryDirectory(prefix="evomerge-bench-") as folder:
        measure(Path(folder), torch.device("cuda"), "7B", options.methods, options.repeats)


def measure(folder: Path, device: torch.device, size: str, methods: list[str], repeats: int) -> None:
    """Merge by each method and copy as many bytes, turn by turn."""
    checkpoints = resident_models(folder, device, size)
    base = checkpoints["base"]
    outs = {name: torch.empty_like(base.tensor(name)) for name in base.names}
    statistics = Statistics()
    for method in methods:
        models = len(EXPERTS) + (method != "linear") + 1
        copy = Copy(models * base.bytes, device)

        def merge(turn: int, method: str = method) -> float:
            names = {name: name for name in checkpoints}
            plans = plan_merge(Recipe.model_validate(recipe(method, names, 0.9 * 0.95**turn)), checkpoints)
            merger = Merger(checkpoints, mask_seed=0, device=device, statistics=statistics)
            return seconds_of(lambda: merger.merge_all(plans, outs), device)

        reference, seconds = in_turn(copy.seconds, merge, repeats)
        figure(
            "gpu_merge",
            f"gpu.merge.{method}",
            ratios(seconds, reference),
            "times the copy",
            reference="copying the same bytes within the GPU's memory",
            goal=GOALS[method],
            seconds=[round(one, 4) for one in seconds],
            copy_gb_per_second=[round(models * base.bytes / one / 1e9) for one in reference],
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        )


def resident_models(folder: Path, device: torch.device, size: str) -> dict[str, Checkpoint]:
    """A base and three experts whose tensors are drawn on `device`: of the base, a file with nothing but a header and
    a hole is written, and of the experts no file at all."""
    opened = Checkpoint.open(write_hollow(folder, size), "base")
    source = torch.Generator(device).manual_seed(0)

    def drawn(around: Checkpoint | None, spread: float) -> dict[str, Tensor]:
        views = {}
        for name in opened.names:
            noise = torch.empty(opened.shape(name), dtype=torch.bfloat16, device=device)
            noise.normal_(0.0, spread, generator=source)
            views[name] = noise if around is None else noise.add_(around.tensor(name))
        return views

    base = replace(opened, _views=drawn(None, 0.02))
    return {"base": base} | {name: replace(base, name=name, _views=drawn(base, 0.002)) for name in EXPERTS}


def write_hollow(folder: Path, size: str) -> Path:
    """A Llama of this size without content: no block of its file is taken."""
    settings = config(size)
    with torch.device("meta"):
        shapes = {name: list(tensor.shape) for name, tensor in LlamaForCausalLM(settings).state_dict().items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    plain = settings.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(plain), "utf-8")
    return folder


class Copy:
    """Copies within a device's memory, so that `moved` bytes are read and written."""

    _PART = 1 << 30

    def __init__(self, moved: int, device: torch.device) -> None:
        self._device = device
        self._times, self._rest = divmod(moved // 2, self._PART)
        self._from, self._to = (torch.zeros(self._PART, dtype=torch.uint8, device=device) for _ in range(2))

    def seconds(self) -> float:
        """Seconds of one copy."""
        return seconds_of(self._copy, self._device)

    def _copy(self) -> None:
        for _ in range(self._times):
            self._to.copy_(self._from)
        self._to[: self._rest].copy_(self._from[: self._rest])


def seconds_of(work: Callable[[], None], device: torch.device) -> float:
    """Seconds of `work`, until the device has done it."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
