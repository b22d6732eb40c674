"""merge.linear and merge.ties: merging three experts of 0.85 B parameters in memory, against moving the same bytes.

The reference copies as many bytes as linear reads and writes (three sources read, one result written: half of them
read, half written) by memcpy on as many threads. TIES and DARE-TIES are measured against our own linear, each time at
a density never used before. Sources are in the page cache and a merge of each method went before.
"""

import argparse
import ctypes
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from figures import figure
from merge_recipes import EXPERTS, METHODS, recipe, write_models

from evomerge_contract.recipe import Recipe
from evomerge_worker.families.live import LiveModel
from evomerge_worker.shards import Checkpoint

CPU = torch.device("cpu")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["linear", "ties", "dare_ties"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", type=Path, help="keep the models in this folder, and use them if they are there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="evomerge-bench-") as temporary:
        measure(options.models or Path(temporary), options.methods, options.repeats, options.threads)


def measure(folder: Path, methods: list[str], repeats: int, threads: int) -> None:
    """Merge by each method and copy, turn by turn."""
    checkpoints = {name: Checkpoint.open(path, name) for name, path in write_models(folder).items()}
    live = LiveModel.open(checkpoints["base"], device=CPU)
    moved = (len(EXPERTS) + 1) * (checkpoints["base"].folder / "model.safetensors").stat().st_size
    copy = Memcpy(moved // 2, threads)
    for method in methods:
        merge_seconds(live, checkpoints, method, density=0.9)
    copy.seconds()
    memcpy: list[float] = []
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    for repeat in range(repeats):
        memcpy.append(copy.seconds())
        for method in methods:
            seconds[method].append(merge_seconds(live, checkpoints, method, density=0.4 + 0.07 * repeat))
    report(seconds, memcpy, moved, threads)


def report(seconds: dict[str, list[float]], memcpy: list[float], moved: int, threads: int) -> None:
    """Linear against the memcpy, the others against linear."""
    if "linear" not in seconds:
        return
    figure(
        "merge",
        "merge.linear",
        [ours / copied for ours, copied in zip(seconds["linear"], memcpy, strict=True)],
        "times the memcpy",
        reference=f"memcpy of the same bytes on {threads} threads",
        goal="<= 1.2",
        seconds=_rounded(seconds["linear"]),
        memcpy_gb_per_second=_rounded([moved / s / 1e9 for s in memcpy]),
    )
    goals = {"ties": "<= 2.5", "dare_ties": "<= 4"}
    for method in (m for m in seconds if m != "linear"):
        figure(
            "merge",
            f"merge.{method}",
            [ours / linear for ours, linear in zip(seconds[method], seconds["linear"], strict=True)],
            "times merge.linear",
            reference="our linear merge of the same experts",
            goal=goals.get(method, ""),
            seconds=_rounded(seconds[method]),
        )


def merge_seconds(live: LiveModel, checkpoints: dict[str, Checkpoint], method: str, density: float) -> float:
    """Seconds to merge into the live model."""
    names = {name: name for name in checkpoints}
    asked = Recipe.model_validate(recipe(method, names, density))
    began = time.perf_counter()
    live.merge(asked, checkpoints, mask_seed=0)
    return time.perf_counter() - began


class Memcpy:
    """Copies `size` bytes on `threads` threads, from memory to memory that has been touched before."""

    def __init__(self, size: int, threads: int) -> None:
        self._part = size // threads
        self._buffers = [(_touched(self._part), _touched(self._part)) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads)

    def seconds(self) -> float:
        """Seconds of one copy."""
        began = time.perf_counter()
        for done in [self._pool.submit(self._copy, *buffers) for buffers in self._buffers]:
            done.result()
        return time.perf_counter() - began

    def _copy(self, to: torch.Tensor, source: torch.Tensor) -> None:
        ctypes.memmove(to.data_ptr(), source.data_ptr(), self._part)  # ctypes lets other threads run meanwhile


def _touched(size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.uint8)


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 3) for value in values]


if __name__ == "__main__":
    main()
