"""What of a source's tensor and the base's depends on no parameter: computed once, and then known.

The order of a task vector's magnitudes (a histogram: one more pass inside a single bin gives any threshold exactly),
its L1 norm for every step of a density under given draws, the angle between the two tensors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evomerge_worker.merge import native
from evomerge_worker.merge.draws import STEPS, Draws
from evomerge_worker.merge.formula import AtLeast
from evomerge_worker.merge.largest import cut
from evomerge_worker.merge.method import Source, offset
from evomerge_worker.merge.sums import total

_TINY = 1e-8


def at_least(sources: Sequence[Source], base: Tensor, densities: Sequence[float]) -> list[AtLeast | None]:
    """For each source what keeps exactly max(1, floor(density * n)) elements of `tensor - base`, the largest by
    magnitude, and among equals the first; None keeps all. Densities are above 0."""
    count = base.numel()
    kept = [min(max(1, int(density * count)), count) if density < 1 else None for density in densities]
    if not native.usable(base, *(source.tensor for source in sources)):
        return [None if k is None else _by_sorting(s.tensor, base, k) for s, k in zip(sources, kept, strict=True)]
    found = [None if k is None else _Place.of(s, base, k) for s, k in zip(sources, kept, strict=True)]
    _look_inside([place for place in found if place is not None and place.low_bits], base)
    return [None if place is None else AtLeast(place.threshold, place.kept) for place in found]


@dataclass
class _Place:
    """Where a threshold lies among the magnitudes of a source: at `key`, of whose `size` elements `kept` stay.

    The key is a magnitude's bits, or, where `low_bits` is not 0, those of all that differ only in as many lower ones.
    """

    source: Source
    key: int
    size: int
    kept: int
    low_bits: int

    @classmethod
    def of(cls, source: Source, base: Tensor, kept: int) -> "_Place":
        keys, above, low_bits = _magnitudes(source, base)
        place = int(np.searchsorted(-above, -kept, side="right")) - 1  # the last key with so many at it and above
        higher = int(above[place + 1]) if place + 1 < len(above) else 0
        return cls(source, int(keys[place]), int(above[place]) - higher, kept - higher, low_bits)

    @property
    def threshold(self) -> float:
        return float(np.uint32(self.key << self.low_bits).view(np.float32))


def _look_inside(places: Sequence[_Place], base: Tensor) -> None:
    """Find the thresholds among the magnitudes of their bins, in one more pass over the tensors."""
    if not places:
        return
    tensors = [place.source.tensor for place in places]
    found = native.collect(tensors, base, [place.key for place in places], [place.size for place in places])
    for place, lows in zip(places, found, strict=True):
        counts = np.bincount(lows, minlength=1 << place.low_bits)
        above = np.cumsum(counts[::-1])[::-1]
        low = int(np.flatnonzero(above >= place.kept)[-1])
        place.key, place.kept = place.key << place.low_bits | low, place.kept - int(above[low] - counts[low])
        place.low_bits = 0


def _magnitudes(source: Source, base: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """The magnitudes of the task vector, ascending, and how many elements have each of them or a larger one.

    All of them where they are few, else bins: keys are then to be followed by so many lower bits, the third result.
    """
    if "magnitudes" not in source.known:
        found, low_bits = native.distinct(source.tensor, base), 0
        if found is None:
            counts, low_bits = native.histogram(source.tensor, base), native.LOW_BITS
            found = np.flatnonzero(counts).astype(np.uint32), counts[counts > 0]
        keys, counts = found
        source.known["magnitudes"] = np.stack([keys, np.cumsum(counts[::-1], dtype=np.int64)[::-1]])
        source.known["low_bits"] = np.array([low_bits])
    keys, above = source.known["magnitudes"]
    return keys, above, int(source.known["low_bits"][0])


def _by_sorting(tensor: Tensor, base: Tensor, kept: int) -> AtLeast:
    return AtLeast(*cut(offset(tensor, base).abs_().flatten(), kept))


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
    magnitudes = offset(tensor, base).abs_().flatten()
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
