"""Arcee Fusion: the base takes from the other model what stands out in importance (mergekit's `arcee_fusion`).

arcee.ai/blog/meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from evomerge_worker.merge.formula import Piecewise, pieces, rows
from evomerge_worker.merge.method import InputTensor, fresh, offset
from evomerge_worker.merge.selection import at_ranks
from evomerge_worker.merge.sums import row_products

_TINY = 1e-8  # is added to every probability


def merge(sources: Sequence[InputTensor], base: Tensor, shared: Mapping[str, float]) -> Piecewise:
    """The source's elements where their importance is at least the median + 1.5 * (upper - lower quartile), else the
    base's.

    An element's importance is |x - base| times the divergence of its row (Kullback and Leibler's), each row along the
    last dimension taken as the logits of a distribution: that of x from that of the base. A quartile is the element at
    floor(q * (n - 1)) of the ascending order. mergekit takes the quartiles of larger tensors than 1,000,000 elements
    from a random sample; here they are exact.
    """
    (source,) = sources
    x, origin = rows(source.tensor), rows(base)
    divergence = torch.empty((len(x), 1), device=base.device)
    for part in pieces(origin):
        divergence[part] = _divergence(x[part], origin[part])

    def importance(delta: Tensor, part: slice) -> Tensor:
        return delta.abs().mul_(divergence[part])

    def importances() -> Iterator[Tensor]:
        return (importance(offset(x[part], origin[part]), part).flatten() for part in pieces(origin))

    last = base.numel() - 1
    lower, median, upper = at_ranks(importances, [base.numel() - quarters * last // 4 for quarters in (1, 2, 3)])
    threshold = median + 1.5 * (upper - lower)

    def fused(part: slice) -> Tensor:
        delta = offset(x[part], origin[part])
        keep = importance(delta, part) >= threshold
        return fresh(origin[part]).add_(delta.mul_(keep))

    return Piecewise(rows, fused)


def _divergence(x: Tensor, base: Tensor) -> Tensor:
    """Of the rows [n, m] of x from those of the base, float32 [n, 1].

    In float64: between models that lie near to one another, float32 leaves little but rounding errors.
    """
    p, q = (logits.double().softmax(dim=1).add_(_TINY) for logits in (x, base))
    logarithm = torch.from_numpy(np.log((p / q).cpu().numpy()))  # torch's depends on how threads share it out
    return row_products(p, logarithm.to(p.device)).float().abs_()  # below zero by rounding alone
