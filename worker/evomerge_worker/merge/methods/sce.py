"""SCE: select the elements in which task vectors vary most, calculate weights, erase minority signs (2408.07990)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge_worker.merge.largest import largest
from evomerge_worker.merge.method import Source, fresh, offset
from evomerge_worker.merge.sums import total

_NO_ENERGY = 1e-6  # task vectors whose mean squares sum to less get equal weights
_NO_WEIGHT = 1e-6


def merge(sources: Sequence[Source], base: Tensor, shared: Mapping[str, float]) -> Tensor:
    """The base plus the weighted mean, element by element, of the task vectors that agree with the sign of their sum.

    A task vector weighs what its mean square is among those of all. Below 1, `select_topk` first zeroes all but this
    share of the elements in which the task vectors differ: those of the largest variance, among equals the first.
    """
    if not sources:
        return fresh(base)
    deltas = torch.stack([offset(source.tensor, base) for source in sources])
    if shared["select_topk"] < 1:
        deltas.mul_(_most_varied(deltas, shared["select_topk"]).float())
    sign = deltas.sum(dim=0).ge_(0).mul_(2).sub_(1)
    mixed, divisor = torch.zeros_like(sign), torch.zeros_like(sign)
    for delta, weight in zip(deltas, _weights(deltas), strict=True):
        agreed = delta.mul_(sign).clamp_(min=0)
        mixed.add_(agreed, alpha=weight)
        divisor.add_(agreed.sign_(), alpha=weight)
    return mixed.div_(divisor.clamp_(min=_NO_WEIGHT)).mul_(sign).add_(base)


def _most_varied(deltas: Tensor, share: float) -> Tensor:
    variance = deltas.var(dim=0, unbiased=False)
    return largest(variance, int(share * int(variance.count_nonzero())))


def _weights(deltas: Tensor) -> list[float]:
    squares = [total(delta.square()) / max(1, delta.numel()) for delta in deltas]
    if sum(squares) < _NO_ENERGY:
        return [1 / len(squares)] * len(squares)
    return [square / sum(squares) for square in squares]
