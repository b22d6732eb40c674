"""What a merge method is: a function from tensors and parameters to a tensor."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor that takes part, never to be written to.

    `values` are the per-model parameters. `keep` gives the random mask of a density, which is one for all elements or a
    tensor of one for each: a boolean tensor of this shape.
    """

    tensor: Tensor
    values: Mapping[str, float]
    keep: Callable[..., Tensor]


def fresh(tensor: Tensor) -> Tensor:
    """A copy in float32 that may be written to: working in place saves the time new memory takes."""
    return tensor.to(torch.float32, copy=True)


MergeMethod = Callable[[Sequence[Source], Tensor, Mapping[str, float]], Tensor]
"""(sources, base, shared parameters) to the merged tensor in float32, freshly allocated; all of one shape.

The base is an empty tensor for methods that take none. It is not to be written to either."""


def offset(tensor: Tensor, origin: Tensor) -> Tensor:
    """`tensor` seen from `origin`, or from zero where that is empty, in float32; it may be written to."""
    return fresh(tensor).sub_(origin) if origin.numel() else fresh(tensor)


def back(tensor: Tensor, origin: Tensor) -> Tensor:
    """The reverse of `offset`, in place."""
    return tensor.add_(origin) if origin.numel() else tensor
