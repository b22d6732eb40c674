"""Model Breadcrumbs: task vectors without their largest and their smallest elements, added up (arXiv 2312.06795)."""

from collections.abc import Sequence

from torch import Tensor

from evomerge_worker.merge.largest import kept
from evomerge_worker.merge.method import Source, offset
from evomerge_worker.merge.statistics import largest_of
from evomerge_worker.merge.task_vectors import NOTHING, Thinned, family, masked


def between(sources: Sequence[Source], base: Tensor, rescale: bool) -> list[Thinned]:
    """Keep floor(density * n) elements: the largest but for floor(gamma * n) outliers, or for fewer to have as many.

    Among elements of one magnitude the first count as smaller. A density of 1 keeps the outliers too.
    """
    return [_between(source, base, rescale) for source in sources]


def _between(source: Source, base: Tensor, rescale: bool) -> Thinned:
    density, count = source.values["density"], base.numel()
    if density >= 1:
        return None, 1.0
    number = int(density * count)
    if not number:
        return NOTHING, 1.0
    dropped = max(0, count - number - int(source.values["gamma"] * count))
    ends = largest_of([source, source], base, [count - max(0, dropped - 1), count - (dropped + number - 1)])
    negated = offset(source.tensor, base).abs_().neg_().flatten()
    keep = _highest(negated, dropped + number, -ends[1].threshold)
    if dropped:
        keep.logical_xor_(_highest(negated, dropped, -ends[0].threshold))
    return masked(source, base, keep.view(base.shape), rescale)


def _highest(flat: Tensor, number: int, threshold: float) -> Tensor:
    """True at the `number` highest elements, of which the lowest is `threshold`; among equals at the first."""
    ties = number - int((flat > threshold).sum())
    return kept(flat, threshold, ties)[0]


merge = family(between, consensus=False)
