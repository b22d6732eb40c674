"""Model Breadcrumbs: task vectors without their largest and their smallest elements, added up (arXiv 2312.06795)."""

from collections.abc import Sequence

from torch import Tensor

from evomerge_worker.merge.method import InputTensor
from evomerge_worker.merge.selection import equal
from evomerge_worker.merge.statistics import largest_of
from evomerge_worker.merge.task_vectors import NOTHING, Thinned, family, rescaled
from evomerge_worker.merge.thinning import Between


def without_outliers(sources: Sequence[InputTensor], base: Tensor, rescale: bool) -> list[Thinned]:
    """Keep floor(density * n) elements: the largest but for floor(gamma * n) outliers, or for fewer to have as many.

    Among elements of one magnitude the first count as smaller. A density of 1 keeps the outliers too.
    """
    return [_without_outliers(source, base, rescale) for source in sources]


def _without_outliers(source: InputTensor, base: Tensor, rescale: bool) -> Thinned:
    density, count = source.values["density"], base.numel()
    if density >= 1:
        return None, 1.0
    number = int(density * count)
    if not number:
        return NOTHING, 1.0
    dropped = max(0, count - number - int(source.values["gamma"] * count))
    low, high = largest_of([source, source], base, [count - dropped, count - dropped - number + 1])
    lows, highs = equal([source.tensor, source.tensor], base, [low.threshold, high.threshold])
    kept = Between(low.threshold, lows - low.ties, high.threshold, highs - high.ties + 1)
    return rescaled(source, base, kept, rescale)


merge = family(without_outliers, consensus=False)
