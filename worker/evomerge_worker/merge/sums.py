"""Sums over a whole tensor whose bits do not depend on how many threads torch uses."""

import math

from torch import Tensor

_ROW = 1 << 14
"""Elements added up by one thread: torch shares out whole rows, and a sum of less than 32,768 elements not at all."""


def total(tensor: Tensor) -> float:
    """The sum of a float32 tensor of any shape, on a CPU the same for any number of threads.

    torch cuts the sum of all elements at places that depend on the threads; so rows of fixed length are added up
    instead, each in float32, and their sums exactly.
    """
    flat = tensor.flatten()
    whole = flat.numel() - flat.numel() % _ROW
    rows = flat[:whole].view(-1, _ROW).sum(dim=1)
    return math.fsum([*rows.tolist(), float(flat[whole:].sum())])
