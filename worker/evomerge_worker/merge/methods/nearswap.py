"""NearSwap: the base takes from the other model what is near its own (huggingface.co/alchemonaut/QuartetAnemoi-70B)."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from evomerge_worker.merge.formula import Piecewise, elements
from evomerge_worker.merge.method import InputTensor, fresh, offset

_TINY = 1e-6


def merge(sources: Sequence[InputTensor], base: Tensor, shared: Mapping[str, float]) -> Piecewise:
    """base + w * (x - base), with w = min(1, t / |x - base|) element by element, and at most t / 1e-6."""
    (source,) = sources
    x, origin = elements(source.tensor), elements(base)

    def swapped(part: slice) -> Tensor:
        delta = offset(x[part], origin[part])
        weight = delta.abs().clamp_(min=_TINY).reciprocal_().mul_(shared["t"]).clamp_(max=1)
        return fresh(origin[part]).add_(delta.mul_(weight))

    return Piecewise(elements, swapped)
