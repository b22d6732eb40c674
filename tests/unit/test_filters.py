"""Tensors that have one name in their file and another in memory: filters that are right by either."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge_contract.filters import names, value_for
from evomerge_contract.grouping import misplaced
from evomerge_contract.manifest import Groups
from evomerge_contract.recipe import Filtered
from evomerge_contract.report import Layout
from evomerge_operator.spaces.setting import setting

PUBLISHED = [f"block_sparse_moe.experts.{i}.w{w}.weight" for i in range(3) for w in (1, 2, 3)]
LAYOUT = Layout(
    layer_prefix="model.layers.",
    layers=2,
    layer_tensors=["self_attn.q_proj.weight", "block_sparse_moe.gate.weight", *PUBLISHED],
    before=["model.embed_tokens.weight"],
    after=["lm_head.weight"],
)
IN_MEMORY = {
    "block_sparse_moe.gate.weight": ["mlp.router.weight", "mlp.gate.weight"],
    "block_sparse_moe.e_score_correction_bias": ["mlp.e_score_correction_bias"],
    "block_sparse_moe.experts.7.w1.weight": ["mlp.experts.gate_up_proj"],
    "block_sparse_moe.experts.7.w2.weight": ["mlp.experts.down_proj"],
    "mlp.experts.120.up_proj.weight": ["mlp.experts.gate_up_proj"],
    "mlp.router.gate.weight": ["mlp.gate.weight"],
    "mixer.experts.5.up_proj.weight": ["mixer.experts.up_proj"],
    "mixer.experts.5.down_proj.weight": ["mixer.experts.down_proj"],
    "feed_forward.experts.0.w3.weight": ["feed_forward.experts.gate_up_proj"],
    "feed_forward.experts.0.down_proj.weight": ["feed_forward.experts.down_proj"],
    "mlp.shared_experts.down_proj.weight": [],
    "mlp.experts.down_proj": [],
    "block_sparse_moe.input_linear.weight": [],
    "mlp.down_proj.weight": [],
}


@pytest.mark.parametrize("tensor", IN_MEMORY)
def test_an_expert_has_its_fused_name_too(tensor: str) -> None:
    expected = [tensor, *IN_MEMORY[tensor]]
    assert names(f"model.layers.3.{tensor}") == tuple(f"model.layers.3.{name}" for name in expected)


@given(st.lists(st.sampled_from(["x", "y", "z"]), min_size=5, max_size=5))
def test_filters_give_an_expert_its_groups_value_by_its_name_in_the_file_and_in_memory(groups: list[str]) -> None:
    attention, router, gate_up, down, head = groups
    group_of = {"model.layers.1.self_attn.q_proj.weight": attention, "lm_head.weight": head}
    group_of["model.layers.1.block_sparse_moe.gate.weight"] = router
    group_of |= {f"model.layers.1.{t}": down if ".w2." in t else gate_up for t in PUBLISHED}
    values = {"x": 0.1, "y": 0.2, "z": 0.1}
    found = setting(group_of, values)
    for tensor, group in group_of.items():
        assert value_for(found, tensor) == values[group]
        for name in names(tensor):  # as mergekit reads them, which knows one name only
            assert _first_match(found, name) == values[group]


def _first_match(found: object, name: str) -> object:
    if not isinstance(found, list):
        return found
    return next(one.value for one in found if isinstance(one, Filtered) and (one.filter is None or one.filter in name))


@pytest.mark.parametrize(
    ("regex", "tensor", "other", "fused"),
    [
        (r"w1", "experts.0.w1.weight", "experts.0.w3.weight", "gate_up_proj"),
        (r"experts\.1\.", "experts.1.w1.weight", "experts.0.w1.weight", "gate_up_proj"),
        (r"experts\.[01]\.w2", "experts.0.w2.weight", "experts.2.w2.weight", "down_proj"),
    ],
)
def test_a_pattern_that_takes_a_fused_tensor_apart_is_refused(regex: str, tensor: str, other: str, fused: str) -> None:
    """mergekit could not be given two values for it."""
    groups = Groups.model_validate({"patterns": [{"name": "some", "regex": regex}]})
    ((field, message),) = misplaced(groups, LAYOUT)
    assert field == "patterns[0].regex"
    moe = "model.layers.0.block_sparse_moe"
    assert message == (
        f'pattern some: "{regex}" matches {moe}.{tensor} and not {moe}.{other}; '
        f"both are one tensor to mergekit, model.layers.0.mlp.experts.{fused}: match both or neither"
    )


@pytest.mark.parametrize("regex", [r"w[13]", r"w2", r"experts", r"layers\.0\..*w2", r"block_sparse_moe"])
def test_a_pattern_that_takes_fused_tensors_whole_is_fine(regex: str) -> None:
    groups = Groups.model_validate({"patterns": [{"name": "some", "regex": regex}]})
    assert list(misplaced(groups, LAYOUT)) == []
