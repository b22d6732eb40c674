"""Model Stock: from the base towards the mean of the sources, by how far they agree (arXiv 2403.19522)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge_worker.merge.formula import Formula, Piecewise, combination, rows
from evomerge_worker.merge.method import InputTensor, fresh, offset
from evomerge_worker.merge.sums import inner_products, row_products

_TINY = 1e-6


def merge(sources: Sequence[InputTensor], base: Tensor, shared: Mapping[str, float]) -> Formula:
    """base + t * (mean(x_i) - base), t = n c / (1 + (n - 1) c), c the mean cosine between the n task vectors (eq. 5).

    Taken over the whole tensor, or with `filter_wise` over each vector along its last dimension. Where the cosines
    give no finite t, the base stays.
    """
    tensors, count = [source.tensor for source in sources], len(sources)
    pairs = [(i, j) for i in range(count) for j in range(i + 1)]
    if not shared["filter_wise"] or base.dim() < 2:
        products = torch.from_numpy(inner_products(tensors, base))
        share = _share({(i, j): products[i, j] for i, j in pairs}, count)
        return combination(tensors, [float(share)] * count, base)

    def moved(part: slice) -> Tensor:
        origin = rows(base)[part]
        deltas = [offset(rows(tensor)[part], origin) for tensor in tensors]
        wide = [delta.double() for delta in deltas]
        share = _share({(i, j): row_products(wide[i], wide[j]) for i, j in pairs}, count)
        mixed, *others = deltas
        for delta in others:
            mixed.add_(delta)
        return fresh(origin).add_(mixed.mul_(share.float()))

    return Piecewise(rows, moved)


def _share(products: Mapping[tuple[int, int], Tensor], count: int) -> Tensor:
    """t / n, in float64, from the task vectors' inner products, each of them in the shape of the result.

    Short vectors count as more nearly orthogonal than they are.
    """
    norms = [products[i, i].sqrt() for i in range(count)]
    cosines = [(products[i, j] / (norms[i] * norms[j]).clamp(min=_TINY)).clamp(-1, 1) for i, j in products if i != j]
    cosine = sum(cosines[1:], start=cosines[0]) / len(cosines)
    denominator = 1 + (count - 1) * cosine
    singular = denominator.abs() < _TINY
    return torch.where(singular, 0.0, cosine / torch.where(singular, 1.0, denominator))
