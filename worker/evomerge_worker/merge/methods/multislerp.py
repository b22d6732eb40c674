"""Multi-SLERP: the weighted mean of directions, at the weighted mean of lengths (mergekit's `multislerp`).

With a base it is task vectors whose directions and lengths are averaged.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from evomerge_worker.errors import CandidateError
from evomerge_worker.merge.formula import Formula, WeightedSum, combination
from evomerge_worker.merge.method import InputTensor
from evomerge_worker.merge.sums import inner_products, weight_sum

_ROUNDING = 1e-6  # of the weights: a mean of directions that is shorter is made of rounding errors


def merge(sources: Sequence[InputTensor], base: Tensor, shared: Mapping[str, float]) -> Formula:
    """cos(eps) * sum(w_i |x_i|) * m / |m|, with m = sum(w_i x_i / (|x_i| + eps)); one source alone as it is.

    mergekit goes from m / |m| along the weighted sum of the tangents that lead to the sources. That sum vanishes,
    w_i u_i adding up to m itself: what is left of the step is its length, eps.
    Two sources whose directions cancel are averaged linearly. The mean of zeros (a frozen tensor's task vectors) is 0.

    Raises:
        CandidateError: the weights to divide by sum to zero, or the directions of more than two sources cancel.
    """
    tensors = [source.tensor for source in sources]
    if len(tensors) == 1:
        return WeightedSum((tensors[0],), (1.0,))
    weights = np.array(_weights(sources, normalize=bool(shared["normalize_weights"])))
    eps = shared["eps"]
    gram = inner_products(tensors, base)
    norms = np.sqrt(np.diag(gram))
    mean = np.divide(weights, norms + eps, out=np.zeros_like(weights), where=norms + eps > 0)
    length = math.sqrt(max(0.0, float(mean @ gram @ mean)))
    if length > max(eps, _ROUNDING * np.abs(weights).sum()):
        scale = math.cos(eps) * float(weights @ norms) / length
        return combination(tensors, (scale * mean).tolist(), base)
    if len(tensors) == 2 or not norms.any():
        return combination(tensors, weights.tolist(), base)
    raise CandidateError("NotFinite", "the weighted directions of the sources cancel; choose other weights")


def _weights(sources: Sequence[InputTensor], *, normalize: bool) -> list[float]:
    weights = [source.values["weight"] for source in sources]
    if not normalize:
        return weights
    total = weight_sum(weights)
    if total == 0:
        raise CandidateError("NotFinite", "the weights sum to zero, and normalize_weights divides by their sum")
    return [weight / total for weight in weights]
