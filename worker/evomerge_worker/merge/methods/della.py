"""DELLA: task vectors thinned out at random, large elements less than small ones, with TIES' signs (2406.11617)."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from evomerge_worker.merge.formula import elements, pieces
from evomerge_worker.merge.method import InputTensor, offset
from evomerge_worker.merge.task_vectors import NOTHING, Thinned, family, rescaled
from evomerge_worker.merge.thinning import BYTE, choose


def magprune(sources: Sequence[InputTensor], base: Tensor, rescale: bool) -> list[Thinned]:
    """Keep each element with a probability that rises by its rank among the magnitudes of its row.

    From density - epsilon to density + epsilon, in equal steps (section 3.1). A row lies along the second dimension; a
    vector is one row. An element that is a row of its own (mergekit divides by zero there) is in the middle: it is kept
    with the density, the mean of every row. Densities of 0 and 1 keep nothing and everything.
    """
    return [_magprune(source, base, rescale) for source in sources]


def _magprune(source: InputTensor, base: Tensor, rescale: bool) -> Thinned:
    density, epsilon = source.values["density"], source.values["epsilon"]
    if not 0 < density < 1:
        return (None, 1.0) if density >= 1 else (NOTHING, 1.0)
    return rescaled(source, base, choose(_kept(source, base, density, epsilon), like=base), rescale)


def _kept(source: InputTensor, base: Tensor, density: float, epsilon: float) -> Iterator[Tensor]:
    """Where elements are kept, in their order, some at a time."""
    tensor, origin = (x if x.dim() > 1 else x.view(1, -1) for x in (source.tensor, base))
    number = origin[0].numel()
    for part in pieces(origin, BYTE // math.gcd(BYTE, number)):
        chances = elements(_chances(tensor[part], origin[part], density, epsilon))
        for some in pieces(chances):
            yield source.draws.below(chances[some], part.start * number + some.start)


def _chances(tensor: Tensor, base: Tensor, density: float, epsilon: float) -> Tensor:
    """What elements [n, length, ...] are kept with; beyond two dimensions some of the rows at a time."""
    if base.dim() == 2:
        return probabilities(offset(tensor, base), density, epsilon)
    tensor, origin = tensor.flatten(2), base.flatten(2)
    chances = torch.empty(origin.shape, device=base.device)
    for some in pieces(origin[0].t()):
        chances[..., some] = probabilities(offset(tensor[..., some], origin[..., some]), density, epsilon)
    return chances


def probabilities(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """What each element of `delta` [n, length, ...] is kept with, in float32, in this shape."""
    return _ranks(delta.abs()).mul_(2 * epsilon).add_(density - epsilon)


def _ranks(magnitudes: Tensor) -> Tensor:
    """Each element's place in its row [n, length, ...], from 0 (smallest) to 1; among equals the first is lower."""
    length = magnitudes.shape[1]
    if length == 1:
        return torch.full_like(magnitudes, 0.5)
    order = _order(magnitudes)
    places = torch.arange(length, device=order.device).view(-1, *[1] * (order.dim() - 2)).expand_as(order)
    return torch.empty_like(magnitudes).scatter_(1, order, places.float() / (length - 1))


def _order(magnitudes: Tensor) -> Tensor:
    """What sorts each row; equals stay in their order."""
    if magnitudes.device.type != "cpu":
        return magnitudes.argsort(dim=1, stable=True)
    numbers = torch.arange(magnitudes.shape[1]).view(-1, *[1] * (magnitudes.dim() - 2))
    keys = magnitudes.view(torch.int32).long() << 32 | numbers  # whole numbers, all different: ten times as fast
    return torch.from_numpy(np.sort(keys.numpy(), axis=1)).bitwise_and_((1 << 32) - 1)


merge = family(magprune, consensus=True)
