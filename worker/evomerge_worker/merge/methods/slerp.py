"""SLERP: along the great circle between two tensors, each taken as one vector (Shoemake 1985)."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from evomerge_worker.merge.method import Source, fresh
from evomerge_worker.merge.sums import total

_PARALLEL = 0.9995  # beyond this cosine the arc is as good as straight, and sin(angle) too small to divide by
_TINY = 1e-8


def merge(sources: Sequence[Source], base: Tensor, shared: Mapping[str, float]) -> Tensor:
    """(sin((1 - t) a) x + sin(t a) y) / sin(a), with x the base, y the one source and a the angle between them."""
    (source,) = sources
    x, y = base.float(), source.tensor.float()
    of_x, of_y = _coefficients(_cosine(x, y), shared["t"])
    return fresh(x).mul_(of_x).add_(y, alpha=of_y)


def _cosine(x: Tensor, y: Tensor) -> float:
    norm_x, norm_y = math.sqrt(total(x.square())), math.sqrt(total(y.square()))
    # A vector without a direction counts as orthogonal to every other.
    return total(x * y) / ((norm_x if norm_x > _TINY else 1.0) * (norm_y if norm_y > _TINY else 1.0))


def _coefficients(cosine: float, t: float) -> tuple[float, float]:
    if abs(cosine) > _PARALLEL or math.isnan(cosine):
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
