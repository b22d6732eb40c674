"""What prepare says of stages that search the order of layers: how scales are folded, and what cannot be."""

from pathlib import Path
from typing import Any

import pytest

from evomerge_contract.report import Flow
from prepare_tasks import changed_config, mistakes_of, prepare_folders
from tiny_models import VOCABULARY, Tiny


def _mistakes(folders: dict[str, Path], data: Path, **options: Any) -> list[tuple[str, str]]:
    return mistakes_of(folders, data, methods=(), flows=[list(folders)], **options)


def test_models_of_different_depth_are_prepared_with_what_folds_their_scales(tiny: Tiny, tmp_path: Path) -> None:
    folders = {"a": tiny("llama", seed=1), "deep": tiny("llama", seed=2, num_hidden_layers=6)}
    prepared = prepare_folders(folders, tmp_path, methods=(), flows=[["a", "deep"]])
    divided = ["mlp.down_proj.weight", "self_attn.o_proj.weight"]
    assert prepared.layout.flow == Flow(divided=divided, layers={"a": 4, "deep": 6})
    assert prepared.wire()["layout"]["flow"] == {
        "divided": divided,
        "multiplied": [],
        "about": {},
        "layers": {"a": 4, "deep": 6},
    }


def test_norms_that_add_one_are_scaled_about_minus_one(tiny: Tiny, tmp_path: Path) -> None:
    prepared = prepare_folders({"a": tiny("gemma2", seed=1)}, tmp_path, methods=(), flows=[["a"]])
    norms = ["post_attention_layernorm.weight", "post_feedforward_layernorm.weight"]
    assert prepared.layout.flow == Flow(divided=norms, about=dict.fromkeys(norms, -1.0), layers={"a": 4})


def test_the_biases_of_what_is_divided_are_divided_too_and_those_of_what_is_multiplied_are_not(
    tiny: Tiny, tmp_path: Path
) -> None:
    gpt2 = prepare_folders({"a": tiny("gpt2", seed=1)}, tmp_path, methods=(), flows=[["a"]]).layout.flow
    assert gpt2 is not None
    assert gpt2.divided == ["attn.c_proj.bias", "attn.c_proj.weight", "mlp.c_proj.bias", "mlp.c_proj.weight"]
    folder = tiny("llama", model_type="olmo2", attention_bias=True)
    olmo2 = prepare_folders({"a": folder}, tmp_path, methods=(), flows=[["a"]]).layout.flow
    assert olmo2 is not None
    projections = ["mlp.gate_proj", "mlp.up_proj", "self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj"]
    assert olmo2.multiplied == [f"{name}.weight" for name in projections]


def test_experts_are_named_as_the_tensor_that_they_are_fused_to(tiny: Tiny, tmp_path: Path) -> None:
    """On disk they lie one by one; filters match either name."""
    flow = prepare_folders({"a": tiny("mixtral", seed=1)}, tmp_path, methods=(), flows=[["a"]]).layout.flow
    assert flow is not None
    assert flow.divided == ["mlp.experts.down_proj", "self_attn.o_proj.weight"]


def test_a_search_of_weights_alone_is_prepared_as_ever(tiny: Tiny, tmp_path: Path) -> None:
    prepared = prepare_folders({"a": tiny("llama", seed=1)}, tmp_path)
    assert prepared.layout.flow is None
    assert "flow" not in prepared.wire()["layout"]


def test_where_another_stage_merges_weights_the_depths_must_still_be_the_same(tiny: Tiny, tmp_path: Path) -> None:
    folders = {"a": tiny("llama", seed=1), "deep": tiny("llama", seed=2, num_hidden_layers=6)}
    ((path, message),) = mistakes_of(folders, tmp_path, flows=[["ps", "deep"]])
    assert path == "models.deep"
    assert message.startswith("has 6 layers, but a has 4")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"hidden_size": 64, "head_dim": 16}, "hidden_size is 64, but 32 in a"),
        ({"num_attention_heads": 8, "head_dim": 4, "num_key_value_heads": 4}, "num_attention_heads is 8, but 4 in a"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_parameters"),
        ({"vocabulary": [*VOCABULARY[:-1], "ö"]}, "the vocabulary (96 tokens) is not that of a"),
    ],
)
def test_models_whose_layers_speak_of_different_streams_are_refused(
    tiny: Tiny, tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    folders = {"a": tiny("llama", seed=1), "b": tiny("llama", seed=2, **config)}
    found = _mistakes(folders, tmp_path)
    assert {path for path, _ in found} == {"models.b"}
    assert any(words in message for _, message in found), found


@pytest.mark.parametrize(
    ("family", "config", "why"),
    [
        (
            "llama",
            {"model_type": "falcon_h1", "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
            "it has recurrent layers (such as those with mamba.A_log), into which no scale is folded",
        ),
        ("deepseek_v3", {}, "no scale is folded into models of type deepseek_v3"),
    ],
)
def test_a_family_whose_scales_cannot_be_folded_is_refused_in_words(
    tiny: Tiny, tmp_path: Path, family: str, config: dict[str, Any], why: str
) -> None:
    (first, *_) = _mistakes({"a": tiny(family, seed=1, **config)}, tmp_path)
    assert first[0] == "models.a"
    assert first[1].startswith(f"{why}, so no stage can search the order of its layers; take models of type gemma, ")


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [("llama", "num_kv_shared_layers", 2), ("gpt2", "scale_attn_by_inverse_layer_idx", True)],
)
def test_a_model_whose_layers_are_tied_to_their_places_is_refused(
    tiny: Tiny, tmp_path: Path, family: str, key: str, value: object
) -> None:
    folder = changed_config(tiny(family, seed=1), tmp_path / "tied", **{key: value})
    assert _mistakes({"a": folder}, tmp_path) == [
        ("models.a", f"its layers cannot be moved, because config.json sets {key}; merge it whole")
    ]
