"""What a merge method is: a function from tensors and parameters to the formula of a tensor."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge_worker.merge.draws import Drawing, Draws
from evomerge_worker.merge.formula import Formula

Statistic = NDArray[np.generic]
Find = Callable[["InputTensor", Tensor], Statistic]
"""(source, base) to a statistic of their tensors."""


class Memo(Protocol):
    """Statistics of a tensor and the base's, each found once."""

    def __call__(self, kind: str, find: Find, source: "InputTensor") -> Statistic:
        """The statistic of that kind, which `find` finds in the tensors' files where it is not known yet."""


class InputTensor(NamedTuple):
    """A tensor that takes part, never to be written to, and its name.

    `values` are the per-model parameters, `drawing` has the model's random draws. `memo` keeps
    statistics for later merges; None keeps nothing.
    """

    tensor: Tensor
    name: str
    values: Mapping[str, float]
    drawing: Drawing
    memo: Memo | None = None

    @property
    def draws(self) -> Draws:
        """The draws for this tensor."""
        return self.drawing.of(self.name)

    def statistic(self, kind: str, find: Find, base: Tensor) -> Statistic:
        """What `find` finds out about this tensor and `base`; it is the only one for this `kind`."""
        return find(self, base) if self.memo is None else self.memo(kind, find, self)


def fresh(tensor: Tensor) -> Tensor:
    """A copy in float32 that may be written to: working in place saves the time new memory takes."""
    return tensor.to(torch.float32, copy=True)


MergeMethod = Callable[[Sequence[InputTensor], Tensor, Mapping[str, float]], Formula]
"""(sources, base, shared parameters) to a formula of the merged tensor.

All tensors are of one shape and contiguous. The base is an empty tensor for methods that take none."""


def offset(tensor: Tensor, origin: Tensor) -> Tensor:
    """`tensor` seen from `origin`, or from zero where that is empty, in float32; it may be written to."""
    return fresh(tensor).sub_(origin) if origin.numel() else fresh(tensor)
