"""Passthrough: one source as it is, or scaled; with slices, layers of several models one after the other."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from evomerge_worker.merge.method import Source, fresh


def merge(sources: Sequence[Source], base: Tensor, shared: Mapping[str, float]) -> Tensor:
    """scale * x."""
    (source,) = sources
    return fresh(source.tensor).mul_(source.values["scale"])
