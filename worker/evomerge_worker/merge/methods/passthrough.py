"""Passthrough: one source as it is, or scaled; with slices, layers of several models one after the other."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from evomerge_worker.merge.formula import Formula, Piecewise, WeightedSum, elements
from evomerge_worker.merge.method import InputTensor


def merge(sources: Sequence[InputTensor], base: Tensor, shared: Mapping[str, float]) -> Formula:
    """scale * x; with a `scale_origin`, scale * (x - origin) + origin.

    Norms that multiply by 1 + weight (Gemma's) are scaled about -1.
    """
    (source,) = sources
    scale, origin = source.values["scale"], source.values["scale_origin"]
    if origin == 0 or scale == 1:
        return WeightedSum((source.tensor,), (scale,))
    x = source.tensor.view(-1)
    return Piecewise(elements, lambda part: x[part].float().sub(origin).mul_(scale).add_(origin))
