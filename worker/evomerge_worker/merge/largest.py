"""The largest of many numbers, exactly so many of them."""

import numpy as np
import torch
from torch import Tensor


def largest(magnitudes: Tensor, count: int) -> Tensor:
    """True at exactly the `count` largest elements; among those equal to the smallest of them, at the first."""
    if count == 0:
        return torch.zeros_like(magnitudes, dtype=torch.bool)
    flat = magnitudes.flatten()
    return kept(flat, *cut(flat, count))[0].view(magnitudes.shape)


def cut(flat: Tensor, count: int) -> tuple[float, int]:
    """The smallest of the `count` largest elements of a float32 vector, and how many of these are equal to it."""
    place = flat.numel() - count
    if flat.device.type == "cpu":  # several times faster than any selection torch has on a CPU
        threshold = float(np.partition(flat.numpy(), place)[place])
    else:
        threshold = float(flat.sort().values[place])
    return threshold, count - int((flat > threshold).sum())


def kept(flat: Tensor, threshold: float, ties: int) -> tuple[Tensor, int]:
    """Where a vector is above `threshold`, or among the first `ties` equal to it; how many ties are left."""
    keep = flat > threshold
    if not ties:
        return keep, 0
    equal = (flat == threshold).nonzero().flatten()[:ties]
    keep[equal] = True
    return keep, ties - len(equal)
