"""The family of task arithmetic: task vectors, thinned out, weighted, perhaps brought to agree on a sign.

The order is mergekit's: delta = model - base, sparsify, times weight, sign consensus, sum, normalize, times lambda,
plus base.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from evomerge_worker.merge.method import MergeMethod, Source, fresh
from evomerge_worker.merge.sparsify import drop

_Sparsify = Callable[[Tensor, Source, bool], Tensor]
_NO_WEIGHT = 1e-8  # weights that sum to less are not divided by


def family(sparsify: _Sparsify, *, consensus: bool) -> MergeMethod:
    """The method that thins task vectors out by `sparsify` and, with `consensus`, elects a sign per element."""

    def merge(sources: Sequence[Source], base: Tensor, shared: Mapping[str, float]) -> Tensor:
        start = base.float()
        deltas, weights = [], []
        for source in sources:
            weight = source.values["weight"]
            if weight != 0:
                delta = sparsify(fresh(source.tensor).sub_(start), source, bool(shared["rescale"]))
                deltas.append(delta.mul_(weight))
                weights.append(weight)
        if not deltas:
            return fresh(base)
        combine = _agreeing if consensus else _summed
        mixed = combine(deltas, weights, normalize=bool(shared["normalize"]))
        if shared["lambda"] != 1:
            mixed.mul_(shared["lambda"])
        return mixed.add_(start)

    return merge


def _summed(deltas: list[Tensor], weights: list[float], *, normalize: bool) -> Tensor:
    """The sum of the weighted deltas, over that of the weights when `normalize`. Writes to the first delta."""
    mixed, *others = deltas
    for delta in others:
        mixed.add_(delta)
    total = sum(weights)
    return mixed.div_(total) if normalize and abs(total) >= _NO_WEIGHT else mixed


def _agreeing(deltas: list[Tensor], weights: list[float], *, normalize: bool) -> Tensor:
    """The sum of the weighted deltas that agree with the sign of their sum (a sum of zero counts as positive).

    With `normalize`, each element is divided by the weights that are left in it. Writes to the deltas.
    """
    sign = sum(deltas[1:], start=deltas[0]).ge(0).float().mul_(2).sub_(1)
    mixed, divisor = torch.zeros_like(sign), torch.zeros_like(sign)
    for delta, weight in zip(deltas, weights, strict=True):
        agreed = delta.mul_(sign).clamp_(min=0)
        mixed.add_(agreed)
        if normalize:
            divisor.add_(agreed.sign_(), alpha=weight)
    if normalize:
        mixed.div_(divisor.add_(divisor.eq(0).float()))  # nothing is left where the divisor is zero
    return mixed.mul_(sign)


def whole(delta: Tensor, source: Source, rescale: bool) -> Tensor:
    """All of the task vector."""
    return delta


def dropped(delta: Tensor, source: Source, rescale: bool) -> Tensor:
    """What DARE's draws leave of it (arXiv 2311.03099)."""
    density = source.values["density"]
    return delta if density >= 1 else drop(delta, source.keep(density), rescale=rescale)
