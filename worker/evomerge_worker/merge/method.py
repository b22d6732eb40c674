"""What a merge method is: a function from tensors and parameters to a tensor, or to the formula that makes it."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge_worker.merge.draws import Draws
from evomerge_worker.merge.formula import Formula

Known = MutableMapping[str, NDArray[np.generic]]
"""Statistics of a pair of tensors, by name."""


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor that takes part, never to be written to.

    `values` are the per-model parameters. `known` is what statistics.py has found out about it and the base before.
    """

    tensor: Tensor
    values: Mapping[str, float]
    draws: Draws
    known: Known = field(default_factory=dict)

    def keep(self, probability: float | Tensor) -> Tensor:
        """A boolean tensor of this shape: true with this probability (of its shape too), to within 2**-17."""
        numbers = self.draws.numbers(0, self.tensor.numel(), self.tensor.device).view(self.tensor.shape)
        limits = probability * 65536
        return numbers < (limits.round() if isinstance(limits, Tensor) else round(limits))


def fresh(tensor: Tensor) -> Tensor:
    """A copy in float32 that may be written to: working in place saves the time new memory takes."""
    return tensor.to(torch.float32, copy=True)


MergeMethod = Callable[[Sequence[Source], Tensor, Mapping[str, float]], Tensor | Formula]
"""(sources, base, shared parameters) to the merged tensor in float32, freshly allocated, or to a formula of it.

All tensors are of one shape and contiguous. The base is an empty tensor for methods that take none."""


def offset(tensor: Tensor, origin: Tensor) -> Tensor:
    """`tensor` seen from `origin`, or from zero where that is empty, in float32; it may be written to."""
    return fresh(tensor).sub_(origin) if origin.numel() else fresh(tensor)


def back(tensor: Tensor, origin: Tensor) -> Tensor:
    """The reverse of `offset`, in place."""
    return tensor.add_(origin) if origin.numel() else tensor
