"""SLERP: along the great circle between two tensors, each taken as one vector (Shoemake 1985)."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from evomerge_worker.merge.formula import WeightedSum
from evomerge_worker.merge.method import InputTensor
from evomerge_worker.merge.statistics import cosine

_PARALLEL = 0.9995  # beyond this cosine the arc is as good as straight, and sin(angle) too small to divide by


def merge(sources: Sequence[InputTensor], base: Tensor, shared: Mapping[str, float]) -> WeightedSum:
    """(sin((1 - t) a) x + sin(t a) y) / sin(a), with x the base, y the one source and a the angle between them."""
    (source,) = sources
    return WeightedSum((base, source.tensor), _coefficients(cosine(source, base), shared["t"]))


def _coefficients(cosine: float, t: float) -> tuple[float, float]:
    if abs(cosine) > _PARALLEL or math.isnan(cosine):
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
