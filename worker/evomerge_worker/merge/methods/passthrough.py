"""Passthrough: one source as it is, or scaled; with slices, layers of several models one after the other."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from evomerge_worker.merge.formula import WeightedSum
from evomerge_worker.merge.method import InputTensor


def merge(sources: Sequence[InputTensor], base: Tensor, shared: Mapping[str, float]) -> WeightedSum:
    """scale * x."""
    (source,) = sources
    return WeightedSum((source.tensor,), (source.values["scale"],))
