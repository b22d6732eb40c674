"""DELLA: task vectors thinned out at random, large elements less than small ones, with TIES' signs (2406.11617)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge_worker.merge.method import Source, offset
from evomerge_worker.merge.task_vectors import NOTHING, Thinned, family, masked


def magprune(sources: Sequence[Source], base: Tensor, rescale: bool) -> list[Thinned]:
    """Keep each element with a probability that rises by its rank among the magnitudes of its row.

    From density - epsilon to density + epsilon, in equal steps (section 3.1). A row lies along the second dimension; a
    vector is one row. An element that is a row of its own (mergekit divides by zero there) is in the middle: it is kept
    with the density, the mean of every row. Densities of 0 and 1 keep nothing and everything.
    """
    return [_magprune(source, base, rescale) for source in sources]


def _magprune(source: Source, base: Tensor, rescale: bool) -> Thinned:
    density, epsilon = source.values["density"], source.values["epsilon"]
    if not 0 < density < 1:
        return (None, 1.0) if density >= 1 else (NOTHING, 1.0)
    chances = probabilities(offset(source.tensor, base), density, epsilon)
    return masked(source, base, source.keep(chances), rescale)


def probabilities(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """What each element is kept with, in float32, in the shape of `delta`."""
    rows = delta if delta.dim() > 1 else delta.reshape(1, -1)
    return _ranks(rows.abs()).mul_(2 * epsilon).add_(density - epsilon).reshape(delta.shape)


def _ranks(magnitudes: Tensor) -> Tensor:
    """Each element's place in its row [n, length, ...], from 0 (smallest) to 1; among equals the first is lower."""
    length = magnitudes.shape[1]
    if length == 1:
        return torch.full_like(magnitudes, 0.5)
    order = magnitudes.argsort(dim=1, stable=True)
    places = torch.arange(length, device=order.device).view(-1, *[1] * (order.dim() - 2)).expand_as(order)
    return torch.empty_like(magnitudes).scatter_(1, order, places.float() / (length - 1))


merge = family(magprune, consensus=True)
