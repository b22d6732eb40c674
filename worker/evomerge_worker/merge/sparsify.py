"""Thinning out a task vector: by magnitude (TIES, arXiv 2306.01708) or at random (DARE, arXiv 2311.03099)."""

import numpy as np
import torch
from torch import Tensor

from evomerge_worker.merge.sums import total

_TINY = 1e-7  # below this L1 norm nothing is rescaled


def trim(delta: Tensor, density: float, *, rescale: bool) -> Tensor:
    """Keep exactly max(1, floor(density * n)) elements of `delta`, the largest by magnitude; among equals the first.

    Writes to `delta` and returns it. float32, any shape.
    """
    if density >= 1 or delta.numel() == 0:
        return delta
    if density <= 0:
        return delta.zero_()
    return _masked(delta, largest(delta.abs(), max(1, int(density * delta.numel()))), rescale=rescale)


def drop(delta: Tensor, keep: Tensor, *, rescale: bool) -> Tensor:
    """Keep the elements of `delta` where `keep` is true. Writes to `delta` and returns it."""
    return _masked(delta, keep, rescale=rescale)


def _masked(delta: Tensor, keep: Tensor, *, rescale: bool) -> Tensor:
    """Zero what is not kept; `rescale` restores the L1 norm (as mergekit does, where DARE divides by the density)."""
    before = total(delta.abs()) if rescale else None
    delta.mul_(keep.float())  # several times faster than by booleans
    if before is not None:
        after = total(delta.abs())
        if before >= _TINY and after >= _TINY:
            delta.mul_(before / after)
    return delta


def largest(magnitudes: Tensor, k: int) -> Tensor:
    """True at exactly the `k` largest elements; among those equal to the smallest of them, at the first."""
    if k == 0:
        return torch.zeros_like(magnitudes, dtype=torch.bool)
    flat = magnitudes.flatten()
    threshold = _kth_largest(flat, k)
    keep = flat > threshold
    equal = (flat == threshold).nonzero().flatten()
    keep[equal[: k - int(keep.sum())]] = True
    return keep.view(magnitudes.shape)


def _kth_largest(flat: Tensor, k: int) -> Tensor:
    place = flat.numel() - k
    if flat.device.type == "cpu":
        # Several times faster than any selection torch has on a CPU.
        return torch.tensor(np.partition(flat.numpy(), place)[place])
    return flat.sort().values[place]
