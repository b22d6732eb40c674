"""TIES: task vectors trimmed to their largest elements, then brought to agree on a sign (arXiv 2306.01708)."""

from collections.abc import Sequence

from torch import Tensor

from evomerge_worker.merge.method import InputTensor
from evomerge_worker.merge.statistics import at_least
from evomerge_worker.merge.task_vectors import NOTHING, Thinned, family, rescaled


def _trimmed(sources: Sequence[InputTensor], base: Tensor, rescale: bool) -> list[Thinned]:
    densities = [source.values["density"] for source in sources]
    some = [(source, density) for source, density in zip(sources, densities, strict=True) if density > 0]
    found = iter(at_least([source for source, _ in some], base, [density for _, density in some]))
    return [
        rescaled(source, base, next(found), rescale) if density > 0 else (NOTHING, 1.0)
        for source, density in zip(sources, densities, strict=True)
    ]


merge = family(_trimmed, consensus=True)
