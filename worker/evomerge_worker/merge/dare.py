"""Drop and rescale: what DARE leaves of a task vector (arXiv 2311.03099)."""

from collections.abc import Sequence

from torch import Tensor

from evomerge_worker.merge.draws import limit_of
from evomerge_worker.merge.method import InputTensor
from evomerge_worker.merge.statistics import norms
from evomerge_worker.merge.task_vectors import Thinned, restoring
from evomerge_worker.merge.thinning import Drawn


def dropped(sources: Sequence[InputTensor], base: Tensor, rescale: bool) -> list[Thinned]:
    """Each element is kept with the probability that is the source's density."""
    return [_dropped(source, base, rescale) for source in sources]


def _dropped(source: InputTensor, base: Tensor, rescale: bool) -> Thinned:
    density = source.values["density"]
    if density >= 1:
        return None, 1.0
    limit = limit_of(density)
    return Drawn(source.draws, limit), restoring(*norms(source, base, limit)) if rescale else 1.0
