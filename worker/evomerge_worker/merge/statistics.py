"""What of a source's tensor and the base's depends on no parameter: computed once, and then known.

The order of a task vector's magnitudes (a histogram: one more pass inside a single bin gives any threshold exactly;
where nothing is kept, selection.py finds the one threshold that is asked for),
its L1 norm for every step of a density under given draws, the angle between the two tensors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge_worker.merge import native
from evomerge_worker.merge.draws import STEPS, Draws
from evomerge_worker.merge.formula import elements, pieces
from evomerge_worker.merge.method import InputTensor, Statistic, offset
from evomerge_worker.merge.selection import ROOM, between, kth_largest, kth_of_bin, magnitude_of, magnitudes, select
from evomerge_worker.merge.sums import products
from evomerge_worker.merge.thinning import AtLeast

_TINY = 1e-8
_COUNTABLE = 1 << 32  # elements that fit the library's counts


def at_least(sources: Sequence[InputTensor], base: Tensor, densities: Sequence[float]) -> list[AtLeast | None]:
    """For each source what keeps exactly max(1, floor(density * n)) elements of `tensor - base`, the largest by
    magnitude, and among equals the first; None keeps all. Densities are above 0."""
    count = base.numel()
    kept = {i: min(max(1, int(density * count)), count) for i, density in enumerate(densities) if density < 1}
    found = dict(zip(kept, largest_of([sources[i] for i in kept], base, list(kept.values())), strict=True))
    return [found.get(i) for i in range(len(sources))]


def largest_of(sources: Sequence[InputTensor], base: Tensor, kept: Sequence[int]) -> list[AtLeast]:
    """For each source what keeps exactly so many elements of `tensor - base`, at least one, as `at_least` does."""
    once = [i for i, source in enumerate(sources) if source.memo is None]  # not worth ordering all magnitudes
    selected = select([sources[i].tensor for i in once], base, [kept[i] for i in once])
    found = {i: one for i, one in zip(once, selected, strict=True) if one is not None}
    places = {i: _Place.of(source, base, kept[i]) for i, source in enumerate(sources) if i not in found}
    _look_inside([place for place in places.values() if place.low_bits], base)
    found |= {i: AtLeast(place.threshold, place.kept) for i, place in places.items()}
    return [found[i] for i in range(len(sources))]


@dataclass
class _Place:
    """Where a threshold lies among the magnitudes of a source: at `key`, of whose `size` elements `kept` stay.

    The key is a magnitude's bits, or, where `low_bits` is not 0, those of all that differ only in as many lower ones.
    """

    source: InputTensor
    key: int
    size: int
    kept: int
    low_bits: int

    @classmethod
    def of(cls, source: InputTensor, base: Tensor, kept: int) -> "_Place":
        low_bits, keys, above = _parts_of(source.statistic("magnitudes", _magnitudes, base))
        place = int(np.searchsorted(above, above.dtype.type(kept)))  # the first key that has so many down to it
        higher = int(above[place - 1]) if place else 0
        return cls(source, int(keys[place]), int(above[place]) - higher, kept - higher, low_bits)

    @property
    def threshold(self) -> float:
        return magnitude_of(self.key << self.low_bits)


def _look_inside(places: Sequence[_Place], base: Tensor) -> None:
    """Find the thresholds among the magnitudes of their bins, in one more pass over the tensors.

    A bin that holds much of a tensor (zero, where most has not moved) is counted instead of copied.
    """
    few = [place for place in places if place.size <= base.numel() // ROOM]
    bounds = [native.Bounds(p.key << p.low_bits, (p.key + 1) << p.low_bits, p.size) for p in few]
    for place, inside in zip(few, between([p.source.tensor for p in few], base, bounds), strict=True):
        place.key, place.kept = kth_largest(inside.bits, place.kept)
        place.low_bits = 0
    for place in places:
        if place.low_bits:
            bits = magnitudes(place.source.tensor, base)
            place.key, place.kept = kth_of_bin(bits, place.key, place.low_bits, place.kept)
            place.low_bits = 0


def _magnitudes(source: InputTensor, base: Tensor) -> Statistic:
    """The magnitudes of `tensor - base` for `_parts_of`: all that are different where they are few, else bins."""
    tensor = source.tensor
    compiled = native.usable(tensor, base) and tensor.numel() < _COUNTABLE
    distinct, histogram = (native.distinct, native.histogram) if compiled else (_plain_distinct, _plain_histogram)
    found = distinct(tensor, base)
    low_bits = 0 if found else native.LOW_BITS
    keys, counts = found or _filled(histogram(tensor, base))
    packed = np.concatenate([[low_bits], keys[::-1], np.cumsum(counts[::-1], dtype=np.int64)])
    return packed.astype(np.uint32 if tensor.numel() < _COUNTABLE else np.uint64)


def _filled(histogram: native.Counts) -> tuple[NDArray[np.uint32], native.Counts]:
    """The bins of a histogram that hold something, and how much."""
    return np.flatnonzero(histogram).astype(np.uint32), histogram[histogram > 0]


def _plain_distinct(tensor: Tensor, base: Tensor) -> tuple[NDArray[np.uint32], native.Counts] | None:
    keys, counts = np.zeros(0, np.uint32), np.zeros(0, np.int64)
    for bits in magnitudes(tensor, base):
        more, number = np.unique(bits.cpu().numpy().view(np.uint32), return_counts=True)
        keys, which = np.unique(np.concatenate([keys, more]), return_inverse=True)
        counts = np.bincount(which, np.concatenate([counts, number])).astype(np.int64)
        if len(keys) > native.MOST_DISTINCT:
            return None
    return keys, counts


def _plain_histogram(tensor: Tensor, base: Tensor) -> native.Counts:
    counts = np.zeros(1 << (31 - native.LOW_BITS), np.int64)
    for bits in magnitudes(tensor, base):
        counts += torch.bincount(bits >> native.LOW_BITS, minlength=len(counts)).cpu().numpy()
    return counts


def _parts_of(packed: Statistic) -> tuple[int, Statistic, Statistic]:
    """How many lower bits the keys lack; the keys, descending; and how many elements have each or a larger one."""
    keys, above = packed[1:].reshape(2, -1)
    return int(packed[0]), keys, above


def norms(source: InputTensor, base: Tensor, limit: int) -> tuple[float, float]:
    """The L1 norms of `tensor - base`, of all of it and of the elements whose draw is below `limit` (of 65,536)."""
    sums = source.statistic(f"norms, seed {source.drawing.seed}", _norms, base)
    steps = limit * STEPS // 65536
    return float(sums[-1]), float(sums[steps - 1]) if steps else 0.0


def _norms(source: InputTensor, base: Tensor) -> NDArray[np.float64]:
    """The L1 norms of the elements whose draws are in the lowest 1, 2, ... STEPS steps."""
    by_step = native.norms if native.usable(source.tensor, base) else _plain_norms
    return np.cumsum(by_step(source.tensor, base, source.draws))


def _plain_norms(tensor: Tensor, base: Tensor, draws: Draws) -> NDArray[np.float64]:
    sums = np.zeros(STEPS)
    for part in pieces(elements(tensor)):
        vector = offset(elements(tensor)[part], elements(base)[part]).abs_()
        steps = draws.numbers(part.start, len(vector), vector.device) // (65536 // STEPS)
        np.add.at(sums, steps.cpu().numpy(), vector.double().cpu().numpy())  # one by one, in their order
    return sums


def cosine(source: InputTensor, base: Tensor) -> float:
    """The cosine of the angle between `tensor` and `base`, each taken as one vector.

    A vector without a direction counts as orthogonal to every other.
    """
    return float(source.statistic("cosine", _cosine, base)[0])


def _cosine(source: InputTensor, base: Tensor) -> NDArray[np.float64]:
    x, y, both = products(base, source.tensor)
    norm_x, norm_y = math.sqrt(x), math.sqrt(y)
    return np.array([both / ((norm_x if norm_x > _TINY else 1.0) * (norm_y if norm_y > _TINY else 1.0))])
