"""Model Stock: from the base towards the mean of the sources, by how far they agree (arXiv 2403.19522)."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from evomerge_worker.merge.method import Source, fresh, offset
from evomerge_worker.merge.sums import row_totals

_TINY = 1e-6


def merge(sources: Sequence[Source], base: Tensor, shared: Mapping[str, float]) -> Tensor:
    """base + t * (mean(x_i) - base), t = n c / (1 + (n - 1) c), c the mean cosine between the n task vectors (eq. 5).

    Taken over the whole tensor, or with `filter_wise` over each vector along its last dimension. Where the cosines
    give no finite t, the base stays.
    """
    filters = bool(shared["filter_wise"]) and base.dim() > 1
    shape = base.shape if filters else (1, -1)
    deltas = [offset(source.tensor, base).reshape(shape) for source in sources]
    count = len(deltas)
    cosine = _mean_cosine(deltas)
    denominator = 1 + (count - 1) * cosine
    singular = denominator.abs() < _TINY
    share = torch.where(singular, 0.0, cosine / torch.where(singular, 1.0, denominator))
    mixed, *others = deltas
    for delta in others:
        mixed.add_(delta)
    return fresh(base).add_(mixed.mul_(share.float()).reshape(base.shape))


def _mean_cosine(deltas: Sequence[Tensor]) -> Tensor:
    """The mean over all pairs, in float64, [..., 1]; short vectors count as more nearly orthogonal than they are."""
    norms = [row_totals(delta.square()).sqrt() for delta in deltas]
    pairs = list(combinations(range(len(deltas)), 2))
    cosines = [
        (row_totals(deltas[i] * deltas[j]) / (norms[i] * norms[j]).clamp(min=_TINY)).clamp(-1, 1) for i, j in pairs
    ]
    return sum(cosines[1:], start=cosines[0]) / len(pairs)
