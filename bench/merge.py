"""merge.linear and merge.ties: merging three experts of 0.85 B parameters in memory, against moving the same bytes.

The reference copies as many bytes as linear reads and writes (three sources read, one result written: half of them
read, half written) by memcpy on as many threads, in memory as any program gets it. `times_the_memcpy_in_huge_pages` is
against one in such pages, as the live weights lie in: that is faster, most of all where a virtual machine's neighbours
are busy. TIES and DARE-TIES are measured against our own linear, each time at a density never used before. Each takes
turns with its reference alone. Sources are in the page cache, as a pull leaves them there, and two merges of each went
before.
"""

import argparse
import ctypes
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from figures import figure
from merge_recipes import EXPERTS, TIMED, recipe, write_models

from evomerge_contract.recipe import Recipe
from evomerge_worker.families.live import LiveModel
from evomerge_worker.pages import huge_pages
from evomerge_worker.shards import Checkpoint

CPU = torch.device("cpu")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=TIMED, default=["linear", "ties", "dare_ties"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", type=Path, help="keep the models in this folder, and use them if they are there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="evomerge-bench-") as temporary:
        measure(options.models or Path(temporary), options.methods, options.repeats, options.threads)


def measure(folder: Path, methods: list[str], repeats: int, threads: int) -> None:
    """Merge by each method and its reference, turn by turn."""
    checkpoints = {name: Checkpoint.open(path, name) for name, path in write_models(folder).items()}
    live = LiveModel.open(checkpoints["base"], device=CPU)
    moved = (len(EXPERTS) + 1) * (checkpoints["base"].folder / "model.safetensors").stat().st_size
    linear = partial(merge_seconds, live, checkpoints, "linear", density=1.0)
    if "linear" in methods:
        in_huge = in_turn(Memcpy(moved // 2, threads, huge=True).seconds, lambda _: linear(), repeats)
        memcpy, seconds = in_turn(Memcpy(moved // 2, threads).seconds, lambda _: linear(), repeats)
        figure(
            "merge",
            "merge.linear",
            ratios(seconds, memcpy),
            "times the memcpy",
            reference=f"memcpy of the same bytes on {threads} threads",
            goal="<= 1.2",
            seconds=_rounded(seconds),
            memcpy_gb_per_second=_rounded([moved / s / 1e9 for s in memcpy]),
            times_the_memcpy_in_huge_pages=round(statistics.median(ratios(in_huge[1], in_huge[0])), 3),
        )
    goals = {"ties": "<= 2.5", "dare_ties": "<= 4"}
    for method in (m for m in methods if m != "linear"):
        ours = partial(merge_seconds, live, checkpoints, method)
        reference, seconds = in_turn(linear, lambda turn, ours=ours: ours(density=0.9 * 0.95**turn), repeats)
        figure(
            "merge",
            f"merge.{method}",
            ratios(seconds, reference),
            "times merge.linear",
            reference="our linear merge of the same experts",
            goal=goals.get(method, ""),
            seconds=_rounded(seconds),
        )


def in_turn(
    reference: Callable[[], float], ours: Callable[[int], float], repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of the reference and of ours, which gets the number of its turn, after two turns that do not count."""
    pairs = [(reference(), ours(turn)) for turn in range(repeats + 2)][2:]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def ratios(ours: list[float], reference: list[float]) -> list[float]:
    """Ours over the reference, turn by turn."""
    return [one / other for one, other in zip(ours, reference, strict=True)]


def merge_seconds(live: LiveModel, checkpoints: dict[str, Checkpoint], method: str, density: float) -> float:
    """Seconds to merge into the live model."""
    names = {name: name for name in checkpoints}
    asked = Recipe.model_validate(recipe(method, names, density))
    began = time.perf_counter()
    live.merge(asked, checkpoints, mask_seed=0)
    return time.perf_counter() - began


class Memcpy:
    """Copies `size` bytes on `threads` threads, from memory to memory that has been touched before."""

    def __init__(self, size: int, threads: int, *, huge: bool = False) -> None:
        self._part = size // threads
        make = huge_pages if huge else partial(torch.empty, dtype=torch.uint8)
        self._buffers = [(make(self._part).fill_(1), make(self._part).fill_(1)) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads)

    def seconds(self) -> float:
        """Seconds of one copy."""
        began = time.perf_counter()
        for done in [self._pool.submit(self._copy, *buffers) for buffers in self._buffers]:
            done.result()
        return time.perf_counter() - began

    def _copy(self, to: torch.Tensor, source: torch.Tensor) -> None:
        ctypes.memmove(to.data_ptr(), source.data_ptr(), self._part)  # ctypes lets other threads run meanwhile


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 3) for value in values]


if __name__ == "__main__":
    main()
