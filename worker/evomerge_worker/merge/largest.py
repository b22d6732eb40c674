"""The largest of many numbers, exactly so many of them."""

import numpy as np
import torch
from torch import Tensor


def largest(magnitudes: Tensor, count: int) -> Tensor:
    """True at exactly the `count` largest elements; among those equal to the smallest of them, at the first."""
    if count == 0:
        return torch.zeros_like(magnitudes, dtype=torch.bool)
    flat = magnitudes.flatten()
    threshold = nth_largest(flat, count)
    keep = flat > threshold
    equal = (flat == threshold).nonzero().flatten()
    keep[equal[: count - int(keep.sum())]] = True
    return keep.view(magnitudes.shape)


def nth_largest(flat: Tensor, nth: int) -> float:
    """The nth largest element of a float32 vector; the first is the largest."""
    place = flat.numel() - nth
    if flat.device.type == "cpu":  # several times faster than any selection torch has on a CPU
        return float(np.partition(flat.numpy(), place)[place])
    return float(flat.sort().values[place])
