"""Model Breadcrumbs: task vectors without their largest and their smallest elements, added up (arXiv 2312.06795)."""

from collections.abc import Sequence

from torch import Tensor

from evomerge_worker.merge.largest import largest
from evomerge_worker.merge.method import Source, offset
from evomerge_worker.merge.task_vectors import Thinned, family, masked


def between(sources: Sequence[Source], base: Tensor, rescale: bool) -> list[Thinned]:
    """Keep floor(density * n) elements: the largest but for floor(gamma * n) outliers, or for fewer to have as many.

    Among elements of one magnitude the first count as larger. A density of 1 keeps the outliers too.
    """
    return [_between(source, base, rescale) for source in sources]


def _between(source: Source, base: Tensor, rescale: bool) -> Thinned:
    density, count = source.values["density"], base.numel()
    if density >= 1:
        return None, 1.0
    kept = int(density * count)
    outliers = min(int(source.values["gamma"] * count), count - kept)
    magnitudes = offset(source.tensor, base).abs_()
    keep = largest(magnitudes, outliers + kept).logical_xor_(largest(magnitudes, outliers))
    return masked(source, base, keep, rescale)


merge = family(between, consensus=False)
