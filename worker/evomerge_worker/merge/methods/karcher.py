"""Karcher mean: the point of the sphere whose squared distances to all sources' directions sum to the least.

At the mean of the sources' lengths (Karcher 1977; mergekit's `karcher`).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evomerge_worker.merge.method import Source, fresh
from evomerge_worker.merge.sums import norm, total

_OPPOSITE = -1 + 1e-6  # beyond this cosine no way around the sphere is shorter than the others

_Floats = NDArray[np.float64]


def merge(sources: Sequence[Source], base: Tensor, shared: Mapping[str, float]) -> Tensor:
    """mean(|x_i|) times the Karcher mean of x_i / |x_i|, all sources of one weight; one source alone as it is.

    Sources no longer than `tol` have no direction and count by their length only. At most `max_iter` steps, fewer once
    one is shorter than `tol`.
    """
    if len(sources) == 1:
        return fresh(sources[0].tensor)
    norms = [norm(source.tensor.float()) for source in sources]
    vectors = [source.tensor for source, length in zip(sources, norms, strict=True) if length > shared["tol"]]
    lengths = [length for length in norms if length > shared["tol"]]
    result = fresh(sources[0].tensor).zero_()
    if not vectors:
        return result
    factors = _mean(_cosines(vectors, lengths), int(shared["max_iter"]), shared["tol"])
    scale = sum(norms) / len(norms)
    for vector, factor, length in zip(vectors, factors.tolist(), lengths, strict=True):
        result.add_(vector, alpha=scale * factor / length)
    return result


def _cosines(vectors: Sequence[Tensor], lengths: Sequence[float]) -> _Floats:
    """Of the angles between all of them."""
    cosines = np.eye(len(vectors))
    for i, x in enumerate(vectors):
        for j in range(i):
            cosine = total(x.float() * vectors[j].float()) / lengths[i] / lengths[j]
            cosines[i, j] = cosines[j, i] = min(max(cosine, -1.0), 1.0)
    return cosines


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
