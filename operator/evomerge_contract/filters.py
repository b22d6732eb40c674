"""Which value of a recipe's setting is meant for a tensor, as mergekit has it."""

import re
from functools import cache

from evomerge_contract.recipe import Filtered, Gradient, Scalar, Setting

_IN_MEMORY = (
    (re.compile(r"\.block_sparse_moe\.(?=(gate|experts|e_score_correction_bias)\b)"), ".mlp."),
    (re.compile(r"\.mlp\.router\.gate\."), ".mlp.gate."),  # HY 3
    (re.compile(r"\.mixer\.experts\.\d+\.up_proj\.weight$"), ".mixer.experts.up_proj"),  # Nemotron-H has no gate_proj
    (re.compile(r"\.experts\.\d+\.(w1|w3|gate_proj|up_proj)\.weight$"), ".experts.gate_up_proj"),
    (re.compile(r"\.experts\.\d+\.(w2|down_proj)\.weight$"), ".experts.down_proj"),
)
"""One after the other, what tensors of experts, as they are published, are called where they are fused."""
_ROUTER = re.compile(r"\.block_sparse_moe\.gate\.weight$")
"""Mixtral's router and that of Phi-3.5-MoE, which is called otherwise in memory: by its name alone it is either."""


def value_for(setting: Setting, tensor: str) -> Scalar | Gradient | None:
    """A scalar, a gradient, or None where no filter matches; of several filters the first that matches counts."""
    if not isinstance(setting, list):
        return setting
    if isinstance(setting[0], Filtered):
        cases = (case for case in setting if isinstance(case, Filtered))
        return next((case.value for case in cases if _matches(case.filter, tensor)), None)
    return [value for value in setting if not isinstance(value, Filtered)]


def _matches(wanted: str | None, tensor: str) -> bool:
    """Whether a filter asks for a tensor, by its name in the file or by the one that mergekit has for it."""
    return wanted is None or wanted == "*" or any(wanted in name for name in names(tensor))


@cache
def names(tensor: str) -> tuple[str, ...]:
    """The name of a tensor in its file and, if it may have others there, in memory: those mergekit may have.

    The last one is the commonest.
    """
    fused = tensor
    for pattern, name in _IN_MEMORY:
        fused = pattern.sub(name, fused)
    return tuple(dict.fromkeys((tensor, _ROUTER.sub(".mlp.router.weight", tensor), fused)))
