"""What of a source's tensor and the base's depends on no parameter: computed once, and then known.

The order of a task vector's magnitudes (a histogram: one more pass inside a single bin gives any threshold exactly),
its L1 norm for every step of a density under given draws, the angle between the two tensors.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge_worker.merge import native
from evomerge_worker.merge.draws import STEPS, Draws
from evomerge_worker.merge.formula import AtLeast
from evomerge_worker.merge.method import Source
from evomerge_worker.merge.sums import total

_LOW = native.LOW_BITS
_TINY = 1e-8


def at_least(sources: Sequence[Source], base: Tensor, densities: Sequence[float]) -> list[AtLeast | None]:
    """For each source what keeps exactly max(1, floor(density * n)) elements of `tensor - base`, the largest by
    magnitude, and among equals the first; None keeps all. Densities are above 0."""
    count = base.numel()
    if not native.usable(base, *(source.tensor for source in sources)):
        return [
            _by_sorting(s.tensor, base, _kept(d, count)) if d < 1 else None
            for s, d in zip(sources, densities, strict=True)
        ]
    wanted = [_Wanted(s, base, _kept(d, count)) if d < 1 else None for s, d in zip(sources, densities, strict=True)]
    asked = [w for w in wanted if w is not None and w.bin != 0]
    if asked:
        tensors = [w.source.tensor for w in asked]
        found = native.collect(tensors, base, [w.bin for w in asked], [w.size for w in asked])
        for one, (lows, ends) in zip(asked, found, strict=True):
            one.find(base, lows, ends)
    return [None if w is None else w.answer for w in wanted]


def _kept(density: float, count: int) -> int:
    return min(max(1, int(density * count)), count)


class _Wanted:
    """The search for one threshold: the bin that holds it, then its place there."""

    def __init__(self, source: Source, base: Tensor, kept: int) -> None:
        self.source = source
        bins, above = _magnitudes(source, base)
        place = int(np.searchsorted(-above, -kept, side="right")) - 1  # the last bin with so many in it and above
        higher = int(above[place + 1]) if place + 1 < len(above) else 0
        self.bin, self.size, self._rest = int(bins[place]), int(above[place]) - higher, kept - higher
        # In the lowest bin is what is zero or next to it (below 2**-136), and keeping that changes nothing.
        self.answer = AtLeast(0.0, base.numel() - 1)

    def find(self, base: Tensor, lows: NDArray[np.uint16], ends: NDArray[np.uint64]) -> None:
        """Find the threshold among the lower bits of the magnitudes in the bin, given in the order of the elements."""
        counts = np.bincount(lows, minlength=1 << _LOW)
        above = np.cumsum(counts[::-1])[::-1]
        low = int(np.flatnonzero(above >= self._rest)[-1])
        threshold = float(np.uint32(self.bin << _LOW | low).view(np.float32))
        ties = self._rest - int(above[low] - counts[low])
        last = base.numel() - 1
        if ties < counts[low]:
            place = int(np.flatnonzero(lows == low)[ties - 1])
            part = int(np.searchsorted(ends, place, side="right"))
            start = part * native.PART
            piece = slice(start, start + native.PART)
            vector = self.source.tensor.view(-1)[piece].float() - base.view(-1)[piece].float()
            inside = (vector.view(torch.int32) & 0x7FFFFFFF) >> _LOW == self.bin
            before = int(ends[part - 1]) if part else 0
            last = start + int(inside.nonzero()[place - before])
        self.answer = AtLeast(threshold, last)


def _magnitudes(source: Source, base: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The bins that hold a magnitude of the task vector, and how many it has in each of them and above."""
    if "magnitudes" not in source.known:
        counts = native.histogram(source.tensor, base)
        bins = np.flatnonzero(counts)
        source.known["magnitudes"] = np.stack([bins, np.cumsum(counts[bins][::-1], dtype=np.int64)[::-1]])
    bins, above = source.known["magnitudes"]
    return bins, above


def _by_sorting(tensor: Tensor, base: Tensor, kept: int) -> AtLeast:
    magnitudes = (tensor.float() - base.float()).abs_().flatten()
    place = magnitudes.numel() - kept
    if magnitudes.device.type == "cpu":  # several times faster than any selection torch has on a CPU
        threshold = torch.tensor(np.partition(magnitudes.numpy(), place)[place])
    else:
        threshold = magnitudes.sort().values[place]
    equal = (magnitudes == threshold).nonzero().flatten()
    ties = kept - int((magnitudes > threshold).sum())
    return AtLeast(float(threshold), int(equal[ties - 1]))


def norms(source: Source, base: Tensor, limit: int) -> tuple[float, float]:
    """The L1 norms of `tensor - base`, of all of it and of the elements whose draw is below `limit` (of 65,536)."""
    key = f"norms-{source.draws.key[0]:08x}{source.draws.key[1]:08x}"
    if key not in source.known:
        by_draw = native.norms if native.usable(source.tensor, base) else _norms
        source.known[key] = np.cumsum(by_draw(source.tensor, base, source.draws))
    sums = source.known[key]
    steps = limit * STEPS // 65536
    return float(sums[-1]), float(sums[steps - 1]) if steps else 0.0


def _norms(tensor: Tensor, base: Tensor, draws: Draws) -> NDArray[np.float64]:
    magnitudes = (tensor.float() - base.float()).abs_().flatten()
    steps = draws.numbers(0, magnitudes.numel(), magnitudes.device) // (65536 // STEPS)
    sums = np.bincount(steps.cpu().numpy(), magnitudes.double().cpu().numpy(), minlength=STEPS)
    return sums.astype(np.float64, copy=False)


def cosine(source: Source, base: Tensor) -> float:
    """The cosine of the angle between `tensor` and `base`, each taken as one vector.

    A vector without a direction counts as orthogonal to every other.
    """
    if "cosine" not in source.known:
        x, y = base.float(), source.tensor.float()
        norm_x, norm_y = math.sqrt(total(x.square())), math.sqrt(total(y.square()))
        dot = total(x * y) / ((norm_x if norm_x > _TINY else 1.0) * (norm_y if norm_y > _TINY else 1.0))
        source.known["cosine"] = np.array([dot])
    return float(source.known["cosine"][0])
