"""Multi-SLERP: the weighted mean of directions, at the weighted mean of lengths (mergekit's `multislerp`).

With a base it is task vectors whose directions and lengths are averaged.
"""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from evomerge_worker.errors import CandidateError
from evomerge_worker.merge.method import Source, back, fresh, offset
from evomerge_worker.merge.sums import norm, weight_sum

_ROUNDING = 1e-6  # of the weights: a mean of directions that is shorter is made of rounding errors


def merge(sources: Sequence[Source], base: Tensor, shared: Mapping[str, float]) -> Tensor:
    """cos(eps) * sum(w_i |x_i|) * m / |m|, with m = sum(w_i x_i / (|x_i| + eps)); one source alone as it is.

    mergekit goes from m / |m| along the weighted sum of the tangents that lead to the sources. That sum vanishes,
    w_i u_i adding up to m itself: what is left of the step is its length, eps.
    Two sources whose directions cancel are averaged linearly. The mean of zeros (a frozen tensor's task vectors) is 0.

    Raises:
        CandidateError: the weights to divide by sum to zero, or the directions of more than two sources cancel.
    """
    if len(sources) == 1:
        return fresh(sources[0].tensor)
    weights = _weights(sources, normalize=bool(shared["normalize_weights"]))
    eps = shared["eps"]
    vectors = [offset(source.tensor, base) for source in sources]
    norms = [norm(vector) for vector in vectors]
    mean = _sum(vectors, [w / (n + eps) if n + eps else 0.0 for w, n in zip(weights, norms, strict=True)])
    length = norm(mean)
    if length > max(eps, _ROUNDING * sum(map(abs, weights))):
        scale = sum(w * n for w, n in zip(weights, norms, strict=True))
        return _scaled(mean, math.cos(eps) * scale / length, base)
    if len(sources) == 2 or not any(norms):
        return back(_sum(vectors, weights), base)
    raise CandidateError("NotFinite", "the weighted directions of the sources cancel; choose other weights")


def _weights(sources: Sequence[Source], *, normalize: bool) -> list[float]:
    weights = [source.values["weight"] for source in sources]
    if not normalize:
        return weights
    total = weight_sum(weights)
    if total == 0:
        raise CandidateError("NotFinite", "the weights sum to zero, and normalize_weights divides by their sum")
    return [weight / total for weight in weights]


def _scaled(vector: Tensor, factor: float, base: Tensor) -> Tensor:
    return fresh(base).add_(vector, alpha=factor) if base.numel() else vector.mul_(factor)


def _sum(vectors: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    mixed = vectors[0] * factors[0]
    for vector, factor in zip(vectors[1:], factors[1:], strict=True):
        mixed.add_(vector, alpha=factor)
    return mixed
