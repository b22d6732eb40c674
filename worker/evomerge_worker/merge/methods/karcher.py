"""Karcher mean: the point of the sphere whose squared distances to all sources' directions sum to the least.

At the mean of the sources' lengths (Karcher 1977; mergekit's `karcher`).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evomerge_worker.merge.formula import WeightedSum
from evomerge_worker.merge.method import InputTensor
from evomerge_worker.merge.sums import inner_products

_OPPOSITE = -1 + 1e-6  # beyond this cosine no way around the sphere is shorter than the others

_Floats = NDArray[np.float64]


def merge(sources: Sequence[InputTensor], base: Tensor, shared: Mapping[str, float]) -> WeightedSum:
    """mean(|x_i|) times the Karcher mean of x_i / |x_i|, all sources of one weight; one source alone as it is.

    Sources no longer than `tol` have no direction and count by their length only. At most `max_iter` steps, fewer once
    one is shorter than `tol`.
    """
    tensors = tuple(source.tensor for source in sources)
    if len(tensors) == 1:
        return WeightedSum(tensors, (1.0,))
    gram = inner_products(tensors, base)
    norms = np.sqrt(np.diag(gram))
    directed = norms > shared["tol"]
    factors = np.zeros(len(tensors))
    if directed.any():
        lengths = norms[directed]
        cosines = np.clip(gram[np.ix_(directed, directed)] / np.outer(lengths, lengths), -1, 1)
        factors[directed] = norms.mean() / lengths * _mean(cosines, int(shared["max_iter"]), shared["tol"])
    return WeightedSum(tensors, tuple(factors.tolist()))


def _mean(cosines: _Floats, steps: int, tol: float) -> _Floats:
    """The Karcher mean as a sum of the unit vectors whose `cosines` are given: their factors.

    The mean never leaves the space that the vectors span, so a step needs nothing of them but their inner products.
    It starts at the mean of the vectors, or at the first where they cancel.
    """
    count = len(cosines)
    mean = np.full(count, 1 / count)
    length = _length(mean, cosines)
    mean = np.eye(count)[0] if length < tol or length == 0 else mean / length
    for _ in range(steps):
        tangent = np.zeros(count)
        for i, cosine in enumerate(np.clip(cosines @ mean, -1, 1)):
            if cosine > _OPPOSITE:
                angle = math.acos(cosine)
                stretch = angle / math.sin(angle) if angle else 1.0
                tangent += stretch * (np.eye(count)[i] - cosine * mean) / count
        length = _length(tangent, cosines)
        if length < tol or length == 0:
            break
        mean = math.cos(length) * mean + math.sin(length) / length * tangent
        mean /= _length(mean, cosines)
    return mean


def _length(factors: _Floats, cosines: _Floats) -> float:
    return math.sqrt(max(0.0, float(factors @ cosines @ factors)))
