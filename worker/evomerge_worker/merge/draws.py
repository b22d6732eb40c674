"""The draws of DARE and DELLA: a function of (seed, place, tensor) alone, the same on every device and in any order."""

import hashlib

import numpy as np
import torch
from torch import Tensor

_STEPS = 1 << 32


def keep_mask(seed: int, place: int, tensor: str, shape: tuple[int, ...], density: float | Tensor) -> Tensor:
    """A boolean tensor of `shape`, on the CPU, true with probability `density` (to within 2**-33).

    `density` is one for all elements or a tensor of one for each.

    One draw serves every density: what a lower one keeps, a higher one keeps too. The draws are the 32-bit halves of
    Philox-4x64 (Salmon et al. 2011) under the first 128 bits of the SHA-256 of seed, place and tensor.
    `place` is the source's in the recipe, counted from 0 without the base: models may be renamed, by path for one.
    """
    count = int(np.prod(shape))
    key = hashlib.sha256(f"{seed}\n{place}\n{tensor}".encode()).digest()
    philox = np.random.Philox(key=np.frombuffer(key[:16], dtype="<u8"))
    draws = philox.random_raw((count + 1) // 2).astype("<u8", copy=False).view("<u4")[:count]
    if isinstance(density, Tensor):
        thresholds = np.rint(density.flatten().double().cpu().numpy() * _STEPS)
        return torch.from_numpy(draws < thresholds).view(shape)
    threshold = min(round(density * _STEPS), _STEPS)
    kept = draws < threshold if threshold < _STEPS else np.ones(count, dtype=bool)
    return torch.from_numpy(kept).view(shape)
