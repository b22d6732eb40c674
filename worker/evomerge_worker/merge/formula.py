"""What a method has decided about a tensor, element by element: carried out in one pass over memory.

Statistics of whole tensors (norms, thresholds, angles) are found before and stand here as numbers. `plain` carries a
formula out in torch and says what it means; on a CPU native.py does the same, to the bit, by compiled loops.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge_worker.merge.draws import GROUP, Draws
from evomerge_worker.merge.largest import kept

_CHUNK = 4096 * GROUP
"""Elements at a time: enough for torch's threads, little enough for caches, and temporaries stay small."""


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """sum(weight_i * x_i), in this order, for tensors of one shape."""

    tensors: tuple[Tensor, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class AtLeast:
    """Keep magnitudes above `threshold`, and of those equal to it the first `ties`."""

    threshold: float
    ties: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """Keep the elements whose draw, of 16 bits, is below `limit`."""

    draws: Draws
    limit: int


Thinning = AtLeast | Drawn | Tensor | None
"""What of a task vector is kept: by magnitude, by draws, where a boolean tensor of its shape is true, or all of it."""


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


Formula = WeightedSum | Votes


def combination(tensors: Sequence[Tensor], factors: Sequence[float], base: Tensor) -> Formula:
    """base + sum(factor_i * (x_i - base)); where the base is empty, sum(factor_i * x_i)."""
    if not base.numel():
        return WeightedSum(tuple(tensors), tuple(factors))
    return Votes(base, tuple(Delta(x, factor, factor) for x, factor in zip(tensors, factors, strict=True)))


def plain(formula: Formula, out: Tensor) -> Tensor:
    """Carry `formula` out into `out` (its shape, float32 or 16 bits, contiguous): float32, rounded once.

    Returns a boolean scalar, on the device of `out`: whether all of it is finite.
    """
    result = out.view(-1)
    finite = torch.ones((), dtype=torch.bool, device=out.device)
    ties = [d.thinning.ties if isinstance(d.thinning, AtLeast) else 0 for d in getattr(formula, "deltas", ())]
    for start in range(0, result.numel(), _CHUNK):
        part = slice(start, min(start + _CHUNK, result.numel()))
        result[part] = _voted(formula, part, ties) if isinstance(formula, Votes) else _summed(formula, part)
        finite &= result[part].isfinite().all()
    return finite


def shape_of(formula: Formula) -> torch.Size:
    """The shape of the result."""
    return (formula.base if isinstance(formula, Votes) else formula.tensors[0]).shape


def _summed(formula: WeightedSum, part: slice) -> Tensor:
    terms = (x.view(-1)[part].float().mul(w) for x, w in zip(formula.tensors, formula.weights, strict=True))
    total = next(terms)
    for term in terms:
        total = total.add_(term)
    return total


def _voted(formula: Votes, part: slice, ties: list[int]) -> Tensor:
    """The part, and what it leaves of each delta's `ties`."""
    base = formula.base.view(-1)[part].float()
    deltas = []
    for place, source in enumerate(formula.deltas):
        vector, ties[place] = _thinned(source, base, part, ties[place])
        deltas.append(vector.mul_(source.factor))
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


def _thinned(delta: Delta, base: Tensor, part: slice, ties: int) -> tuple[Tensor, int]:
    vector = delta.tensor.view(-1)[part].float() - base
    match delta.thinning:
        case None:
            return vector, ties
        case AtLeast(threshold, _):
            keep, ties = kept(vector.abs(), threshold, ties)
        case Drawn(draws, limit):
            keep = draws.numbers(part.start, vector.numel(), vector.device) < limit
        case mask:
            keep = mask.view(-1)[part]
    return torch.where(keep, vector, 0.0), ties
