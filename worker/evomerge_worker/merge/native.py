"""The compiled loops of kernels.c: formulas and statistics of tensors on a CPU, many times as fast as by torch.

The library is built with the package where there is a C compiler. Without it, or for what it does not do, everything
here says so and torch does the work, with the same bits.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge_worker.merge.draws import STEPS, Draws
from evomerge_worker.merge.formula import Delta, Formula, Votes, WeightedSum
from evomerge_worker.merge.thinning import AtLeast, Between, Chosen, Drawn
from evomerge_worker.merge.threads import ALONE, Threads

Counts = NDArray[np.uint32] | NDArray[np.int64]

_MOST_SOURCES = 16
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_INTERFACE = 7  # as kernels.c says it
_TABLE_BITS = 17
LOW_BITS = 13
"""Of a magnitude's 31 bits, those that a histogram does not tell apart."""
MOST_DISTINCT = ((1 << _TABLE_BITS) - 1) // 4 * 3
"""So many different magnitudes are told apart."""
LANES = 32
"""Sums of products are added up in so many parts."""


class Bounds(NamedTuple):
    """Magnitudes, as the bits of float32, from `low` to below `high`; `room` for so many."""

    low: int
    high: int
    room: int


class Inside(NamedTuple):
    """Magnitudes within bounds, in no order and only as many as there was room for; how many are within, and above."""

    bits: NDArray[np.uint32]
    within: int
    above: int


class _Tensor(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("dtype", ctypes.c_int32))


class _Delta(ctypes.Structure):
    _fields_ = (
        ("tensor", _Tensor),
        ("factor", ctypes.c_float),
        ("weight", ctypes.c_float),
        ("thinning", ctypes.c_int32),
        ("threshold", ctypes.c_float),
        ("high", ctypes.c_float),
        ("ties", ctypes.c_int64),
        ("skipped", ctypes.c_int64),
        ("key", ctypes.c_uint32 * 2),
        ("limit", ctypes.c_uint32),
        ("chosen", ctypes.c_void_p),
    )


class _Votes(ctypes.Structure):
    _fields_ = (
        ("consensus", ctypes.c_int32),
        ("normalize", ctypes.c_int32),
        ("divisor", ctypes.c_float),
        ("lambda_", ctypes.c_float),
    )


class _Job(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_size_t),
        ("sources", ctypes.c_int32),
        ("out_dtype", ctypes.c_int32),
        ("out", ctypes.c_void_p),
        ("operands", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("base", _Tensor),
        ("votes", _Votes),
    )


@cache
def _library() -> ctypes.CDLL | None:
    found = [path for suffix in EXTENSION_SUFFIXES if (path := Path(__file__).with_name(f"_kernels{suffix}")).exists()]
    if not found:
        return None
    library = ctypes.CDLL(str(found[0]))
    try:
        interface = ctypes.c_int32.in_dll(library, "evomerge_interface").value
    except ValueError:
        interface = 0
    if interface != _INTERFACE:  # it was left by another version
        return None
    size, number, address = ctypes.c_size_t, ctypes.c_int32, ctypes.c_void_p
    library.evomerge_run.argtypes = [size, address, address, address]
    library.evomerge_norms.argtypes = [size, _Tensor, _Tensor, address, address]
    library.evomerge_thinned_norms.argtypes = [size, address, _Tensor, address]
    library.evomerge_products.argtypes = [size, _Tensor, _Tensor, address]
    library.evomerge_histogram.argtypes = [size, _Tensor, _Tensor, number, address]
    library.evomerge_distinct.argtypes = [size, _Tensor, _Tensor, number, address]
    library.evomerge_between.argtypes = [size, number, address, _Tensor, *[address] * 6]
    return library


def usable(*tensors: Tensor) -> bool:
    """Whether the library is there and can work on these tensors."""
    return _library() is not None and all(t.is_cpu and t.dtype in _DTYPES and t.is_contiguous() for t in tensors)


@dataclass(frozen=True, slots=True)
class Ready:
    """What the library is to do for a formula, and all whose addresses it holds: that must live until it is done."""

    job: _Job
    held: tuple[object, ...]


def ready(formula: Formula, out: Tensor) -> Ready | None:
    """What `run` needs to carry `formula` out into `out`. None: it cannot be done here, ask torch."""
    match formula:
        case WeightedSum():
            return _ready_sum(formula, out)
        case Votes():
            return _ready_votes(formula, out)
        case _:
            return None


def run(works: Sequence[Ready], threads: Threads = ALONE) -> list[bool]:
    """Carry out formulas as `formula.plain` does, the first ones first; whether all of a result is finite."""
    if not works:  # nor need there be a library
        return []
    number, jobs = len(works), (_Job * len(works))(*(work.job for work in works))
    finite, following = (ctypes.c_int32 * number)(), ctypes.c_size_t()
    library = _loaded()
    list(
        threads.map(
            lambda _: library.evomerge_run(number, jobs, ctypes.byref(following), finite), range(threads.number)
        )
    )
    return [bool(fine) for fine in finite]


def _ready_sum(formula: WeightedSum, out: Tensor) -> Ready | None:
    number = len(formula.tensors)
    if not usable(out, *formula.tensors) or number > _MOST_SOURCES:
        return None
    tensors = (_Tensor * number)(*map(_tensor, formula.tensors))
    weights = (ctypes.c_float * number)(*formula.weights)
    job = _Job(out.numel(), number, _DTYPES[out.dtype], out.data_ptr(), ctypes.addressof(tensors))
    job.weights = ctypes.addressof(weights)
    return Ready(job, (formula, out, tensors, weights))


def _ready_votes(formula: Votes, out: Tensor) -> Ready | None:
    number = len(formula.deltas)
    fitting = usable(out, formula.base, *(delta.tensor for delta in formula.deltas))
    if not fitting or number > _MOST_SOURCES:
        return None
    deltas = (_Delta * number)(*map(_delta, formula.deltas))
    job = _Job(out.numel(), number, _DTYPES[out.dtype], out.data_ptr(), ctypes.addressof(deltas))
    job.base = _tensor(formula.base)
    job.votes = _Votes(formula.consensus, formula.normalize, formula.divisor, formula.lambda_)
    return Ready(job, (formula, out, deltas))


def _tensor(tensor: Tensor) -> _Tensor:
    return _Tensor(tensor.data_ptr(), _DTYPES[tensor.dtype])


def _delta(delta: Delta) -> _Delta:
    result = _Delta(tensor=_tensor(delta.tensor), factor=delta.factor, weight=delta.weight, thinning=0)
    match delta.thinning:
        case AtLeast(threshold, ties):
            result.thinning, result.threshold, result.ties = 1, threshold, ties
        case Between(low, skipped, high, ties):
            result.thinning, result.threshold, result.skipped = 2, low, skipped
            result.high, result.ties = high, ties
        case Drawn(draws, limit) if limit < 65536:
            result.thinning, result.key, result.limit = 3, (ctypes.c_uint32 * 2)(*draws.key), limit
        case Chosen(bits):
            result.thinning, result.chosen = 4, bits.data_ptr()
    return result


def norms(tensor: Tensor, base: Tensor, draws: Draws) -> NDArray[np.float64]:
    """For each of the steps of a density the L1 norm of `tensor - base` where the draws are in it.

    Element by element in float64, in their order. The tensors are `usable`.
    """
    result = np.zeros(STEPS)
    keys = (ctypes.c_uint32 * 2)(*draws.key)
    _loaded().evomerge_norms(tensor.numel(), _tensor(tensor), _tensor(base), keys, result.ctypes.data)
    return result


def thinned_norms(delta: Delta, base: Tensor) -> NDArray[np.float64]:
    """The L1 norms of `delta` as it is and thinned out, [2, LANES]: of the elements 0, 32, 64 ..., of 1, 33 ...

    In float64, added up in their order. The tensors are `usable`.
    """
    result = np.zeros((2, LANES))
    _loaded().evomerge_thinned_norms(base.numel(), ctypes.byref(_delta(delta)), _tensor(base), result.ctypes.data)
    return result


def products(one: Tensor, other: Tensor) -> NDArray[np.float64]:
    """The sums of squares of two tensors and of their products, [3, LANES]: of the elements 0, 32, 64 ..., of 1, 33 ...

    In float64, added up in their order. The tensors are `usable`.
    """
    result = np.zeros((3, LANES))
    _loaded().evomerge_products(one.numel(), _tensor(one), _tensor(other), result.ctypes.data)
    return result


def histogram(tensor: Tensor, base: Tensor) -> Counts:
    """How many magnitudes of `tensor - base`, as float32, have each value of `bits >> LOW_BITS`."""
    counts = np.zeros(1 << (31 - LOW_BITS), dtype=np.uint32)
    _loaded().evomerge_histogram(tensor.numel(), _tensor(tensor), _tensor(base), LOW_BITS, counts.ctypes.data)
    return counts


def distinct(tensor: Tensor, base: Tensor) -> tuple[NDArray[np.uint32], Counts] | None:
    """The different magnitudes of `tensor - base`, as the bits of float32, ascending, and how often each is there.

    None if they are more than MOST_DISTINCT: of 16-bit tensors there are some 10,000, of float32 as many as elements.
    """
    table = np.zeros(1 << _TABLE_BITS, dtype=np.uint64)
    if not _loaded().evomerge_distinct(tensor.numel(), _tensor(tensor), _tensor(base), _TABLE_BITS, table.ctypes.data):
        return None
    keys, counts = table[table > 0].astype("<u8").view("<u4").reshape(-1, 2).T
    order = np.argsort(keys)
    return keys[order], counts[order]


def between(tensors: Sequence[Tensor], base: Tensor, bounds: Sequence[Bounds]) -> list[Inside]:
    """For each tensor the magnitudes of `tensor - base` within its bounds, and how many are above them."""
    if len(tensors) > _MOST_SOURCES:
        parts = (slice(0, _MOST_SOURCES), slice(_MOST_SOURCES, None))
        return [one for part in parts for one in between(tensors[part], base, bounds[part])]
    number = len(tensors)
    found = [np.empty(one.room, dtype=np.uint32) for one in bounds]
    within, above = (ctypes.c_size_t * number)(), (ctypes.c_size_t * number)()
    _loaded().evomerge_between(
        base.numel(),
        number,
        (_Tensor * number)(*map(_tensor, tensors)),
        _tensor(base),
        (ctypes.c_uint32 * number)(*(one.low for one in bounds)),
        (ctypes.c_uint32 * number)(*(one.high for one in bounds)),
        (ctypes.c_void_p * number)(*(array.ctypes.data for array in found)),
        (ctypes.c_size_t * number)(*(one.room for one in bounds)),
        within,
        above,
    )
    return [Inside(array[:inside], inside, larger) for array, inside, larger in zip(found, within, above, strict=True)]


def _loaded() -> ctypes.CDLL:
    library = _library()
    if library is None:
        raise RuntimeError("the compiled library is not there: ask `usable` first")
    return library
