"""What a method has decided about a tensor, element by element: carried out in one pass over memory.

Statistics of whole tensors (norms, thresholds, angles) are found before and stand here as numbers. `plain` carries a
formula out in torch and says what it means; on a CPU native.py does the same, to the bit, by compiled loops.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge_worker.merge.thinning import Sieve, Thinning

_PIECE, _ON_DEVICE = 1 << 17, 1 << 24
"""Elements of a piece: on a CPU what fits its caches, and leaves no large holes between what is kept longer (of 1 << 18
SCE took a sixth of a model for them); on a device so many that the work outlasts starting it."""
_COLUMNS = 32
"""At least so many at a time: the elements side by side in memory that one access fetches."""


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """sum(weight_i * x_i), in this order, for tensors of one shape."""

    tensors: tuple[Tensor, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """A task vector tensor - base, thinned out, times `factor`. Where it takes part, `weight` is divided by."""

    tensor: Tensor
    weight: float
    factor: float
    thinning: Thinning = None


@dataclass(frozen=True, slots=True)
class Votes:
    """base + lambda * (sum of deltas) / divisor.

    With `consensus` only those deltas count in an element that have the sign of the sum of all (zero counts as
    positive), and with `normalize` what is divided by is the sum of their weights (nothing, where none is left).
    """

    base: Tensor
    deltas: tuple[Delta, ...]
    consensus: bool = False
    normalize: bool = False
    divisor: float = 1.0
    lambda_: float = 1.0


@dataclass(frozen=True, slots=True)
class Piecewise:
    """A tensor that is made in torch, piece by piece.

    `view` is `elements`, `rows` or `columns`: what pieces are slices of. `make` gives those of the view of the result,
    in float32; what it takes for that of other tensors it takes from the same view of them.
    """

    view: Callable[[Tensor], Tensor]
    make: Callable[[slice], Tensor]


Formula = WeightedSum | Votes | Piecewise


def elements(tensor: Tensor) -> Tensor:
    """The tensor as one vector."""
    return tensor.view(-1)


def rows(tensor: Tensor) -> Tensor:
    """The vectors along the last dimension, [number, length]; a number alone is one of length 1."""
    return tensor.view(-1, *tensor.shape[-1:] or (1,))


def columns(tensor: Tensor) -> Tensor:
    """The vectors along the first dimension, [number, length], which do not lie in memory so."""
    return tensor.view(tensor.shape[0], -1).t()


def pieces(view: Tensor, multiple: int = 1) -> Iterator[slice]:
    """Slices that make up the first dimension of a view, each but the last a multiple of so many."""
    size = _PIECE if view.device.type == "cpu" else _ON_DEVICE
    multiple = multiple if view.is_contiguous() else math.lcm(multiple, _COLUMNS)
    step = -(-size // (max(1, view[:1].numel()) * multiple)) * multiple
    for start in range(0, len(view), step):
        yield slice(start, min(start + step, len(view)))


def combination(tensors: Sequence[Tensor], factors: Sequence[float], base: Tensor) -> Formula:
    """base + sum(factor_i * (x_i - base)); where the base is empty, sum(factor_i * x_i)."""
    if not base.numel():
        return WeightedSum(tuple(tensors), tuple(factors))
    return Votes(base, tuple(Delta(x, factor, factor) for x, factor in zip(tensors, factors, strict=True)))


def plain(formula: Formula, out: Tensor) -> Tensor:
    """Carry `formula` out into `out` (its shape, float32 or 16 bits, contiguous): float32, rounded once.

    Returns a boolean scalar, on the device of `out`: whether all of it is finite.
    """
    match formula:
        case WeightedSum():
            piecewise = Piecewise(elements, lambda part: _summed(formula, part))
        case Votes():
            sieves = [Sieve(delta.thinning) for delta in formula.deltas]
            piecewise = Piecewise(elements, lambda part: _voted(formula, sieves, part))
        case Piecewise():
            piecewise = formula
    result = piecewise.view(out)
    finite = torch.ones((), dtype=torch.bool, device=out.device)
    for part in pieces(result):
        result[part] = piecewise.make(part)
        finite &= result[part].isfinite().all()
    return finite


def _summed(formula: WeightedSum, part: slice) -> Tensor:
    terms = (x.view(-1)[part].float().mul(w) for x, w in zip(formula.tensors, formula.weights, strict=True))
    total = next(terms)
    for term in terms:
        total = total.add_(term)
    return total


def _voted(formula: Votes, sieves: Sequence[Sieve], part: slice) -> Tensor:
    """A part; the sieves have seen those before it."""
    base = formula.base.view(-1)[part].float()
    deltas = [
        sieve.thinned(source.tensor.view(-1)[part].float() - base, part.start).mul_(source.factor)
        for source, sieve in zip(formula.deltas, sieves, strict=True)
    ]
    total = deltas[0].clone()
    for delta in deltas[1:]:
        total.add_(delta)
    if formula.consensus:
        total = _agreeing(formula, deltas, total)
    if formula.divisor != 1:
        total.div_(formula.divisor)
    return total.mul_(formula.lambda_).add_(base)


def _agreeing(formula: Votes, deltas: list[Tensor], total: Tensor) -> Tensor:
    sign = total.ge(0).float().mul_(2).sub_(1)
    mixed, shares = torch.zeros_like(sign), torch.zeros_like(sign)
    for delta, source in zip(deltas, formula.deltas, strict=True):
        agreed = delta.mul_(sign).clamp_(min=0)
        mixed.add_(agreed)
        if formula.normalize:
            shares.add_(agreed.sign_().mul_(source.weight))
    if formula.normalize:
        mixed.div_(shares.add_(shares.eq(0).float()))
    return mixed.mul_(sign)
