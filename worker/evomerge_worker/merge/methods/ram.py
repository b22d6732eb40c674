"""RAM, Reinforced Agent Merging: the mean of the task vectors over those that changed an element (2601.13572)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge_worker.merge.formula import Formula, Piecewise, WeightedSum, elements
from evomerge_worker.merge.method import InputTensor, offset


def merge(sources: Sequence[InputTensor], base: Tensor, shared: Mapping[str, float]) -> Formula:
    """The base plus, element by element, the mean of the task vectors that are further than `epsilon` from zero there.

    So what only one model changed is not diluted by the others, as it is in the mean of all.
    """
    return reinforced(sources, base, shared["epsilon"], [1.0] * len(sources))


def reinforced(sources: Sequence[InputTensor], base: Tensor, epsilon: float, gains: Sequence[float]) -> Formula:
    """As RAM; what only one source changed is multiplied by its gain."""
    if not sources:
        return WeightedSum((base,), (1.0,))
    tensors, origin = [elements(source.tensor) for source in sources], elements(base)

    def merged(part: slice) -> Tensor:
        deltas, changed = changes(tensors, origin, part, epsilon)
        number = torch.stack(changed).sum(dim=0)
        unique = number == 1
        total = torch.zeros_like(deltas[0])
        for delta, mine, gain in zip(deltas, changed, gains, strict=True):
            total.add_(delta.mul_(mine).mul_(torch.where(unique, gain, 1.0)))
        return total.div_(number.clamp_(min=1)).add_(origin[part])

    return Piecewise(elements, merged)


def changes(
    tensors: Sequence[Tensor], origin: Tensor, part: slice, epsilon: float
) -> tuple[list[Tensor], list[Tensor]]:
    """A part of each task vector, and where it is further than `epsilon` from zero."""
    deltas = [offset(tensor[part], origin[part]) for tensor in tensors]
    return deltas, [delta.abs() > epsilon for delta in deltas]
