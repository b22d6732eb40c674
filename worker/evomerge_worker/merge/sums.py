"""Sums over a whole tensor whose bits do not depend on how many threads torch uses; sums of weights."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge_worker.merge import native
from evomerge_worker.merge.method import offset

_ROW = 1 << 14
"""Elements added up by one thread: torch shares out whole rows, and a sum of less than 32,768 elements not at all."""
_CHUNK = 1 << 20
"""Elements looked at together: what is made of them stays in the CPU's caches."""
_CANCELLED = 1e-8
"""Of weights: decimals that cancel add up to less, but seldom to zero (0.1 + 0.2 - 0.3)."""


def total(tensor: Tensor) -> float:
    """The sum of a float32 tensor of any shape, on a CPU the same for any number of threads.

    torch cuts the sum of all elements at places that depend on the threads; so rows of fixed length are added up
    instead, each in float32, and their sums exactly.
    """
    flat = tensor.flatten()
    whole = flat.numel() - flat.numel() % _ROW
    rows = flat[:whole].view(-1, _ROW).sum(dim=1)
    return math.fsum([*rows.tolist(), float(flat[whole:].sum())])


def products(one: Tensor, other: Tensor) -> tuple[float, float, float]:
    """The inner products x * x, y * y and x * y of two tensors of one shape, each taken as one vector.

    In float64, where no product of two elements (of 16 bits or float32) is rounded.
    """
    sums = (native.products if native.usable(one, other) else _plain_products)(one, other)
    x, y, both = (math.fsum(parts) for parts in sums)
    return x, y, both


def _plain_products(one: Tensor, other: Tensor) -> NDArray[np.float64]:
    sums = np.zeros((3, 1, native.LANES))
    for parts in zip(*(torch.split(tensor.flatten(), _CHUNK) for tensor in (one, other)), strict=True):
        padded = (np.pad(part.double().cpu().numpy(), (0, -len(part) % native.LANES)) for part in parts)
        x, y = (part.reshape(-1, native.LANES) for part in padded)
        rows = np.concatenate([sums, np.stack([x * x, y * y, x * y])], axis=1)
        sums = np.add.reduce(rows, axis=1, keepdims=True)
    return sums.reshape(3, native.LANES)


def inner_products(tensors: Sequence[Tensor], base: Tensor) -> NDArray[np.float64]:
    """Those of all pairs of `tensor - base` (of the tensors, where the base is empty), [tensors, tensors].

    The differences are rounded to float32, as everywhere; nothing after that is.
    """
    count, origin = len(tensors), base.reshape(-1)
    flat = [tensor.reshape(-1) for tensor in tensors]
    found = np.zeros((count, count))
    for start in range(0, flat[0].numel(), _CHUNK):
        part = slice(start, start + _CHUNK)
        vectors = [offset(x[part], origin[part]) if origin.numel() else x[part] for x in flat]
        for i, x in enumerate(vectors):
            for j, y in enumerate(vectors[: i + 1]):
                found[i, j] += products(x, y)[2]
    return np.tril(found) + np.tril(found, -1).T


def row_totals(tensor: Tensor) -> Tensor:
    """The sums of a float32 tensor [..., n] along its last dimension, in float64, [..., 1].

    torch shares whole rows out among its threads, if they lie in memory one after the other; a lone row it cuts.
    """
    if tensor.numel() == tensor.shape[-1]:
        return torch.full((*tensor.shape[:-1], 1), total(tensor), dtype=torch.float64, device=tensor.device)
    return tensor.contiguous().sum(dim=-1, keepdim=True).double()


def weight_sum(weights: Sequence[float]) -> float:
    """The sum of weights that are to be divided by it: zero where they cancel but for their rounding."""
    found = math.fsum(weights)
    return found if abs(found) > _CANCELLED * math.fsum(map(abs, weights)) else 0.0
