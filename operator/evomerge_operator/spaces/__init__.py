"""Spaces: from a stage's manifest and the models' layout to genes, and from a genome to a recipe. One space a file.

A further space is a file here, its fields in the contract's manifest, and an entry in `SPACES`.
"""

from collections.abc import Callable, Sequence

from evomerge_contract.manifest import EvoMergeSpec, ParameterSpace, Stage
from evomerge_contract.recipe import DTypeName
from evomerge_contract.report import Layout
from evomerge_operator.spaces.baselines import baselines, default_baselines
from evomerge_operator.spaces.parameter_space import make_parameter_space
from evomerge_operator.spaces.space import Space

__all__ = ["Space", "baselines", "default_baselines", "make_space"]

SPACES: dict[type[ParameterSpace], Callable[[ParameterSpace, Sequence[str], EvoMergeSpec, Layout, DTypeName], Space]]
SPACES = {ParameterSpace: make_parameter_space}


def make_space(stage: Stage, pool: Sequence[str], spec: EvoMergeSpec, layout: Layout, dtype: DTypeName) -> Space:
    """The space of a stage that merges the models named in `pool`; what is merged is written in `dtype`.

    Raises:
        ValueError: the stage's fields do not fit the layout.
    """
    return SPACES[type(stage.space)](stage.space, pool, spec, layout, dtype)
