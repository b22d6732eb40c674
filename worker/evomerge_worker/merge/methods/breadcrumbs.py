"""Model Breadcrumbs: task vectors without their largest and their smallest elements, added up (arXiv 2312.06795)."""

from torch import Tensor

from evomerge_worker.merge.method import Source
from evomerge_worker.merge.sparsify import drop, largest
from evomerge_worker.merge.task_vectors import family


def between(delta: Tensor, source: Source, rescale: bool) -> Tensor:
    """Keep floor(density * n) elements: the largest but for floor(gamma * n) outliers, or for fewer to have as many.

    Among elements of one magnitude the first count as larger. A density of 1 keeps the outliers too.
    """
    density, count = source.values["density"], delta.numel()
    if density >= 1:
        return delta
    kept = int(density * count)
    outliers = min(int(source.values["gamma"] * count), count - kept)
    magnitudes = delta.abs()
    keep = largest(magnitudes, outliers + kept).logical_xor_(largest(magnitudes, outliers))
    return drop(delta, keep, rescale=rescale)


merge = family(between, consensus=False)
