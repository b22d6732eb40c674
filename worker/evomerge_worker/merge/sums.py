"""Sums over a whole tensor whose bits do not depend on how many threads torch uses; sums of weights."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge_worker.merge import native
from evomerge_worker.merge.formula import Delta, elements, pieces
from evomerge_worker.merge.method import offset
from evomerge_worker.merge.thinning import Sieve

_Floats = NDArray[np.float64]

_CANCELLED = 1e-8
"""Of weights: decimals that cancel add up to less, but seldom to zero (0.1 + 0.2 - 0.3)."""


def products(one: Tensor, other: Tensor) -> tuple[float, float, float]:
    """The inner products x * x, y * y and x * y of two tensors of one shape, each taken as one vector.

    In float64, where no product of two elements (of 16 bits or float32) is rounded.
    """
    sums = (native.products if native.usable(one, other) else _plain_products)(one, other)
    x, y, both = (math.fsum(lanes) for lanes in sums)
    return x, y, both


def _plain_products(one: Tensor, other: Tensor) -> _Floats:
    sums, flat = np.zeros((3, native.LANES)), (one.flatten(), other.flatten())
    for part in pieces(flat[0]):
        x, y = (tensor[part].double() for tensor in flat)
        sums = _added(sums, [x * x, y * y, x * y])
    return sums


def thinned_norms(delta: Delta, base: Tensor) -> tuple[float, float]:
    """The L1 norms of a task vector times its factor, as it is and thinned out, added up in float64."""
    sums = (native.thinned_norms if native.usable(delta.tensor, base) else _plain_thinned_norms)(delta, base)
    whole, rest = (math.fsum(lanes) for lanes in sums)
    return whole, rest


def _plain_thinned_norms(delta: Delta, base: Tensor) -> _Floats:
    sums, sieve = np.zeros((2, native.LANES)), Sieve(delta.thinning)
    for part in pieces(elements(base)):
        vector = offset(elements(delta.tensor)[part], elements(base)[part])
        rest = sieve.thinned(vector, part.start)
        sums = _added(sums, [x.mul(delta.factor).abs_().double() for x in (vector, rest)])
    return sums


def _added(sums: _Floats, vectors: Sequence[Tensor]) -> _Floats:
    """`sums` [n, LANES] and n vectors in float64 that go over the lanes again and again: on a CPU in their order."""
    lanes = [torch.nn.functional.pad(vector, (0, -len(vector) % native.LANES)) for vector in vectors]
    rows = torch.stack(lanes).view(len(sums), -1, native.LANES)
    if rows.device.type != "cpu":
        return np.asarray(sums + rows.sum(dim=1).cpu().numpy())
    return np.asarray(np.add.reduce(np.concatenate([sums[:, None], rows.numpy()], axis=1), axis=1))


def inner_products(tensors: Sequence[Tensor], base: Tensor) -> _Floats:
    """Those of all pairs of `tensor - base` (of the tensors, where the base is empty), [tensors, tensors].

    The differences are rounded to float32, as everywhere; nothing after that is.
    """
    count, origin = len(tensors), elements(base)
    flat = [elements(tensor) for tensor in tensors]
    found = np.zeros((count, count))
    for part in pieces(flat[0]):
        vectors = [offset(x[part], origin[part]) if origin.numel() else x[part] for x in flat]
        for i, x in enumerate(vectors):
            for j, y in enumerate(vectors[: i + 1]):
                found[i, j] += products(x, y)[2]
    return np.tril(found) + np.tril(found, -1).T


def row_products(x: Tensor, y: Tensor) -> Tensor:
    """The inner products of the rows of two float64 tensors [n, m], [n, 1].

    torch shares whole rows out among its threads, if they lie in memory one after the other; a lone row it cuts.
    """
    products = (x * y).contiguous()
    if len(x) > 1:
        return products.sum(dim=1, keepdim=True)
    lanes = _added(np.zeros((1, native.LANES)), [products[0]])
    return torch.full((1, 1), math.fsum(lanes[0]), dtype=torch.float64, device=x.device)


def weight_sum(weights: Sequence[float]) -> float:
    """The sum of weights that are to be divided by it: zero where they cancel but for their rounding."""
    found = math.fsum(weights)
    return found if abs(found) > _CANCELLED * math.fsum(map(abs, weights)) else 0.0
