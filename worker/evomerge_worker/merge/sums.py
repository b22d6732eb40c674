"""Sums over a whole tensor whose bits do not depend on how many threads torch uses; sums of weights."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_ROW = 1 << 14
"""Elements added up by one thread: torch shares out whole rows, and a sum of less than 32,768 elements not at all."""
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


def norm(tensor: Tensor) -> float:
    """The Euclidean norm of a float32 tensor taken as one vector."""
    return math.sqrt(total(tensor.square()))


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
