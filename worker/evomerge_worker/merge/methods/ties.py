"""TIES: task vectors trimmed to their largest elements, then brought to agree on a sign (arXiv 2306.01708)."""

from torch import Tensor

from evomerge_worker.merge.method import Source
from evomerge_worker.merge.sparsify import trim
from evomerge_worker.merge.task_vectors import family


def _trimmed(delta: Tensor, source: Source, rescale: bool) -> Tensor:
    return trim(delta, source.values["density"], rescale=rescale)


merge = family(_trimmed, consensus=True)
