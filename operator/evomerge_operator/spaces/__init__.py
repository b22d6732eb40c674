"""Spaces: from a stage's manifest and the models' layout to genes, and from a genome to a recipe. One space a file.

A further space is a file here, its fields in the contract's manifest, and a line in `make_space`.
"""

from collections.abc import Sequence

from evomerge_contract.manifest import DataFlowSpace, EvoMergeSpec, ParameterSpace, Stage
from evomerge_contract.recipe import DTypeName
from evomerge_contract.report import Layout
from evomerge_operator.search import BINARY
from evomerge_operator.spaces.baselines import alone, baselines, default_baselines
from evomerge_operator.spaces.data_flow_space import make_data_flow_space
from evomerge_operator.spaces.parameter_space import make_parameter_space
from evomerge_operator.spaces.space import Space

__all__ = ["Space", "alone", "baselines", "default_baselines", "make_space"]


def make_space(stage: Stage, pool: Sequence[str], spec: EvoMergeSpec, layout: Layout, dtype: DTypeName) -> Space:
    """The space of a stage that merges the models named in `pool`; what is merged is written in `dtype`.

    Raises:
        ValueError: the stage's fields do not fit the layout.
    """
    match stage.space:
        case ParameterSpace() as space:
            return make_parameter_space(space, pool, spec, layout, dtype)
        case DataFlowSpace() as space:
            relaxed = stage.search.algorithm not in BINARY
            return make_data_flow_space(space, pool, spec, layout, dtype, relaxed=relaxed)
