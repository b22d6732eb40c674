"""SCE: select the elements in which task vectors vary most, calculate weights, erase minority signs (2408.07990)."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from evomerge_worker.merge.formula import Formula, Piecewise, WeightedSum, elements, pieces
from evomerge_worker.merge.method import InputTensor, offset
from evomerge_worker.merge.selection import largest_share
from evomerge_worker.merge.sums import products
from evomerge_worker.merge.thinning import Chosen, Sieve, choose

_NO_ENERGY = 1e-6  # task vectors whose mean squares sum to less get equal weights
_NO_WEIGHT = 1e-6


def merge(sources: Sequence[InputTensor], base: Tensor, shared: Mapping[str, float]) -> Formula:
    """The base plus the weighted mean, element by element, of the task vectors that agree with the sign of their sum.

    A task vector weighs what its mean square is among those of all. Below 1, `select_topk` first zeroes all but this
    share of the elements in which the task vectors differ: those of the largest variance, among equals the first.
    """
    if not sources:
        return WeightedSum((base,), (1.0,))
    tensors, origin, share = [elements(source.tensor) for source in sources], elements(base), shared["select_topk"]

    def vectors(part: slice) -> list[Tensor]:
        return [offset(tensor[part], origin[part]) for tensor in tensors]

    taken = _selected(vectors, _most_varied(vectors, origin, share)) if share < 1 else vectors
    weights = _weights(taken, origin)

    def merged(part: slice) -> Tensor:
        return _agreeing(taken(part), weights).add_(origin[part])

    return Piecewise(elements, merged)


_Vectors = Callable[[slice], list[Tensor]]
"""A part of each task vector."""


def _selected(vectors: _Vectors, chosen: Chosen) -> _Vectors:
    sieve = Sieve(chosen)

    def selected(part: slice) -> list[Tensor]:
        first, *others = vectors(part)
        keep = sieve.keep(first, part.start)
        return [vector.mul_(keep) for vector in (first, *others)]

    return selected


def _most_varied(vectors: _Vectors, origin: Tensor, share: float) -> Chosen:
    sieve = Sieve(largest_share(lambda: (_variance(vectors(part)) for part in pieces(origin)), share))
    return choose((sieve.keep(_variance(vectors(part)), part.start) for part in pieces(origin)), like=origin)


def _variance(vectors: Sequence[Tensor]) -> Tensor:
    """Of each element, in float32: by Welford's way in float64, so that it is zero where all are equal."""
    mean = vectors[0].double()
    squares = torch.zeros_like(mean)
    for number, vector in enumerate(vectors[1:], start=2):
        value = vector.double()
        apart = value - mean
        mean.add_(apart / number)
        squares.add_(apart.mul_(value.sub_(mean)))
    return squares.div_(len(vectors)).float()


def _weights(vectors: _Vectors, origin: Tensor) -> list[float]:
    parts = ([products(vector, vector)[0] for vector in vectors(part)] for part in pieces(origin))
    squares = [math.fsum(sums) / len(origin) for sums in zip(*parts, strict=True)]
    if sum(squares) < _NO_ENERGY:
        return [1 / len(squares)] * len(squares)
    return [square / sum(squares) for square in squares]


def _agreeing(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    sign = vectors[0].clone()
    for vector in vectors[1:]:
        sign.add_(vector)
    sign.ge_(0).mul_(2).sub_(1)
    mixed, divisor = torch.zeros_like(sign), torch.zeros_like(sign)
    for vector, weight in zip(vectors, weights, strict=True):
        agreed = vector.mul_(sign).clamp_(min=0)
        mixed.add_(agreed, alpha=weight)
        divisor.add_(agreed.sign_(), alpha=weight)
    return mixed.div_(divisor.clamp_(min=_NO_WEIGHT)).mul_(sign)
