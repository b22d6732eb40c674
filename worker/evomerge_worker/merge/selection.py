"""The k-th largest of many numbers, exactly.

For those who merge once, of a task vector's magnitudes by one pass over it: a sample says between which two the k-th
lies, and only those in between are looked at (Floyd and Rivest 1975). Otherwise by the bits, the upper ones first.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge_worker.merge import native
from evomerge_worker.merge.formula import elements, pieces
from evomerge_worker.merge.method import offset
from evomerge_worker.merge.thinning import AtLeast

_RUN = 32  # elements
_SAMPLE = 2048 * _RUN
_WORTH_SAMPLING = 2 * _SAMPLE  # elements
_SIGMAS = 5.0
"""So many standard deviations of a rank in the sample are looked at on both sides."""
ROOM = 8
"""One element in so many may be copied to be looked at; where there are more, it takes other means."""
_BEYOND = 1 << 31  # above all magnitudes
_LOWER = 15  # bits of a float32 that are looked at once the upper ones are settled


def select(tensors: Sequence[Tensor], base: Tensor, kept: Sequence[int]) -> list[AtLeast | None]:
    """For each tensor what keeps exactly so many elements of `tensor - base`, the largest, and among equals the first.

    None where the tensor is small or the sample misled: what is found does not depend on the sample.
    """
    if not tensors or base.numel() < _WORTH_SAMPLING:
        return [None] * len(tensors)
    origin = _runs(base)
    samples = (magnitude_bits(_runs(tensor), origin).cpu().numpy().reshape(-1, _RUN) for tensor in tensors)
    bounds = [_bounds(sample, k / base.numel(), base.numel() // ROOM) for sample, k in zip(samples, kept, strict=True)]
    found = between(tensors, base, bounds)
    return [_selected(inside, k) for inside, k in zip(found, kept, strict=True)]


def _bounds(sample: NDArray[np.int32], share: float, room: int) -> native.Bounds:
    """Where the magnitude surely lies that so large a share of all reach. `sample`: their bits, [runs, elements]."""
    ordered, size = np.sort(sample, axis=None)[::-1], sample.size
    middle = ordered[min(int(size * share), size - 1)]
    # Neighbours are alike: what counts is how much runs differ. Of many that are equal, either side may be the odd one.
    spread = max(np.count_nonzero(side, axis=1).std() for side in (sample >= middle, sample > middle))
    margin = _SIGMAS * (math.sqrt(len(sample)) * spread + 1)
    first, last = math.floor(size * share - margin), math.ceil(size * share + margin)
    high = int(ordered[first]) + 1 if first >= 0 else _BEYOND
    low = int(ordered[last]) if last < size else 0
    return native.Bounds(low, high, room)


def _runs(tensor: Tensor) -> Tensor:
    """The sample: short runs, of one or two lines of memory each, all over the tensor."""
    step = tensor.numel() // (_SAMPLE // _RUN) | 1  # odd: rows are most often of a power of two, or some times that
    whole = tensor.numel() // step
    return tensor.view(-1)[: whole * step].view(whole, step)[:, :_RUN].contiguous()


def _selected(inside: native.Inside, kept: int) -> AtLeast | None:
    rank = kept - inside.above
    if inside.within > len(inside.bits) or not 0 < rank <= inside.within:
        return None
    bits, ties = kth_largest(inside.bits, rank)
    return AtLeast(magnitude_of(bits), ties)


def kth_largest(bits: NDArray[np.uint32], k: int) -> tuple[int, int]:
    """The k-th largest (from 1), and how many of those equal to it are among the k largest."""
    ordered = np.sort(bits)  # of 16-bit weights few are different: a selection would take longer
    value = ordered[len(bits) - k]
    return int(value), k - (len(bits) - int(np.searchsorted(ordered, value, side="right")))


def between(tensors: Sequence[Tensor], base: Tensor, bounds: Sequence[native.Bounds]) -> list[native.Inside]:
    """For each tensor the magnitudes of `tensor - base` within its bounds."""
    if not tensors:
        return []
    return (native.between if native.usable(base, *tensors) else _plain_between)(tensors, base, bounds)


def _plain_between(tensors: Sequence[Tensor], base: Tensor, bounds: Sequence[native.Bounds]) -> list[native.Inside]:
    return [_plain_inside(*one, base) for one in zip(tensors, bounds, strict=True)]


def _plain_inside(tensor: Tensor, bounds: native.Bounds, base: Tensor) -> native.Inside:
    found, within, above = [], 0, 0
    for bits in magnitudes(tensor, base):
        inside = bits[(bits >= bounds.low) & (bits <= bounds.high - 1)]  # as int32 there is no 1 << 31
        found.append(inside[: max(0, bounds.room - within)].cpu().numpy())
        within += len(inside)
        above += int((bits > bounds.high - 1).sum())
    return native.Inside(np.concatenate(found).astype(np.uint32), within, above)


def equal(tensors: Sequence[Tensor], base: Tensor, values: Sequence[float]) -> list[int]:
    """How many elements of each `tensor - base` have this magnitude."""
    keys = [int(np.float32(value).view(np.uint32)) for value in values]
    return [inside.within for inside in between(tensors, base, [native.Bounds(key, key + 1, 0) for key in keys])]


def magnitudes(tensor: Tensor, base: Tensor) -> Iterator[Tensor]:
    """The magnitudes of `tensor - base`, piece by piece, as `magnitude_bits` has them."""
    for part in pieces(elements(tensor)):
        yield magnitude_bits(elements(tensor)[part], elements(base)[part])


def magnitude_bits(tensor: Tensor, base: Tensor) -> Tensor:
    """The magnitudes of `tensor - base` as the bits of float32, int32, flat."""
    return offset(tensor, base).abs_().flatten().view(torch.int32)


def magnitude_of(bits: int) -> float:
    """The magnitude that has these bits as a float32."""
    return float(np.uint32(bits).view(np.float32))


def largest_share(vector: Callable[[], Iterable[Tensor]], share: float) -> AtLeast:
    """What keeps this share of a vector's elements that are not zero, the largest, and among equals the first.

    `vector` gives it, float32 and nowhere negative, piece by piece; it is gone through twice.
    """
    upper, nonzero = np.zeros(1 << 31 - _LOWER, np.int64), 0
    for piece in vector():
        nonzero += int(piece.count_nonzero())
        upper += _upper_counts(piece)
    kept = int(share * nonzero)
    if not kept:
        return AtLeast(math.inf, 0)
    return _largest(upper, vector, kept)


def at_ranks(vector: Callable[[], Iterable[Tensor]], ranks: Sequence[int]) -> list[float]:
    """The elements of a vector that have these ranks; the largest has rank 1.

    `vector` is as in `largest_share`; it is gone through once, and once more a rank.
    """
    upper = np.zeros(1 << 31 - _LOWER, np.int64)
    for piece in vector():
        upper += _upper_counts(piece)
    return [_largest(upper, vector, rank).threshold for rank in ranks]


def _upper_counts(piece: Tensor) -> NDArray[np.int64]:
    return _counts(piece.view(torch.int32) >> _LOWER, 1 << 31 - _LOWER)


def _largest(upper: NDArray[np.int64], vector: Callable[[], Iterable[Tensor]], k: int) -> AtLeast:
    """What keeps the k largest of a vector whose elements' upper bits are counted in `upper`."""
    key, kept = _place(upper, k)
    bits, ties = kth_of_bin((piece.view(torch.int32) for piece in vector()), key, _LOWER, kept)
    return AtLeast(magnitude_of(bits), ties)


def kth_of_bin(numbers: Iterable[Tensor], key: int, low_bits: int, k: int) -> tuple[int, int]:
    """The k-th largest (from 1) of those whole numbers that are `key` without so many lower bits, and how many of those
    equal to it are among the k largest."""
    lower = np.zeros(1 << low_bits, np.int64)
    for bits in numbers:
        lower += _counts(bits[bits >> low_bits == key] - (key << low_bits), len(lower))
    low, ties = _place(lower, k)
    return (key << low_bits) + low, ties


def _counts(keys: Tensor, number: int) -> NDArray[np.int64]:
    return torch.bincount(keys, minlength=number).cpu().numpy()


def _place(counts: NDArray[np.int64], kept: int) -> tuple[int, int]:
    """The highest key down to which there are `kept` elements, and how many of its own are among them."""
    above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(above, kept))
    return len(counts) - 1 - place, kept - int(above[place] - counts[::-1][place])
