"""Configurations of one base, however they are written, are the same; one field that computes otherwise is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from evomerge_worker.prepare.config import differences, read_config

Config = dict[str, Any]

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4}
QWEN2 = {"model_type": "qwen2", "num_hidden_layers": 4, "use_sliding_window": False}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "original_max_position_embeddings": 4096}
LONG = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
PHI3 = {"model_type": "phi3", "original_max_position_embeddings": 4096, "max_position_embeddings": 131072}
GEMMA3 = {"model_type": "gemma3_text", "num_hidden_layers": 6}


def told(config: Config, other: Config, folder: Path, *, in_place: bool = True) -> list[str]:
    """The differences of the first from the second, which is called a, read from files."""
    read = []
    for name, values in (("b", config), ("a", other)):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(values))
        read.append(read_config(folder / name, name, code=False))
    return [difference.sentence for difference in differences(*read, "a", in_place=in_place)]


def rope(kind: str = "default", theta: float = 10000.0, **values: Any) -> Config:
    """Rotary embeddings as transformers writes them since version 5."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **values}}


@pytest.mark.parametrize(
    ("config", "other", "field"),
    [
        (LLAMA | {"hidden_size": 128}, LLAMA, "hidden_size is 128, but 64"),
        (LLAMA | {"num_attention_heads": 2}, LLAMA, "num_attention_heads is 2, but 4"),
        (LLAMA | {"head_dim": 32}, LLAMA, "head_dim is 32, but 16"),
    ],
)
def test_a_size_that_follows_from_others_is_not_told_beside_them(
    config: Config, other: Config, field: str, tmp_path: Path
) -> None:
    (sentence,) = told(config, other, tmp_path)
    assert sentence.startswith(field)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (LLAMA | {"rope_theta": 5e5, "rope_scaling": None}, LLAMA | rope(theta=500000)),
        (LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}}, LLAMA | rope("linear", factor=2)),
        (
            LLAMA | {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0}},
            LLAMA | rope("linear", factor=2.0, attention_factor=None),
        ),
        (
            LLAMA | {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}},
            LLAMA | rope("llama3", 5e5, **LLAMA3) | {"max_position_embeddings": 131072},
        ),
        (
            {"model_type": "deepseek_v3", "rope_scaling": YARN | {"type": "yarn"}, "ep_size": 1, "seq_aux": True},
            {"model_type": "deepseek_v3", **rope("yarn", **YARN)},
        ),
        (PHI3 | {"rope_scaling": LONG | {"type": "longrope"}}, PHI3 | rope("longrope", **LONG)),
        ({"model_type": "gpt_neox", "rotary_pct": 0.5}, {"model_type": "gpt_neox", **rope(partial_rotary_factor=0.5)}),
        ({"model_type": "phi", "partial_rotary_factor": 0.4}, {"model_type": "phi", **rope(partial_rotary_factor=0.4)}),
        (
            GEMMA3 | {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6},
            GEMMA3
            | {"layer_types": ["sliding_attention"] * 5 + ["full_attention"]}
            | {
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                }
            },
        ),
        (QWEN2 | {"sliding_window": 131072, "max_window_layers": 24}, QWEN2 | {"max_window_layers": 21}),
        (QWEN2 | {"sliding_window": 131072}, QWEN2 | {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
        ({"model_type": "gpt2", "n_inner": None, "n_ctx": 1024}, {"model_type": "gpt2", "n_inner": 3072}),
        ({"model_type": "mixtral", "head_dim": None}, {"model_type": "mixtral", "head_dim": 128}),
        (
            {"model_type": "gpt_neo", "num_layers": 4, "attention_types": [[["global", "local"], 2]]},
            {"model_type": "gpt_neo", "num_layers": 4, "attention_types": [[["global"], 1], [["local", "global"], 1],
                                                                            [["local"], 1]]},
        ),
        (
            {"model_type": "cohere2", "num_hidden_layers": 4, "sliding_window_pattern": 4},
            {"model_type": "cohere2", "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
             "num_hidden_layers": 4},
        ),
        ({"model_type": "mpt", "attn_config": {"attn_impl": "triton", "attn_pdrop": 1}}, {"model_type": "mpt"}),
        ({"model_type": "gemma2", "cache_implementation": "hybrid"}, {"model_type": "gemma2",
                                                                      "use_bidirectional_attention": False}),
        (
            LLAMA,
            LLAMA
            | {"max_position_embeddings": 9999, "use_cache": False, "pretraining_tp": 2, "_name_or_path": "x/y"}
            | {"unsloth_version": "2025.1", "unsloth_fixed": True, "torch_dtype": "float16", "head_dim": 16}
            | {"num_key_value_heads": 4, "mlp_bias": False, "sliding_window": None, "rope_interleaved": False}
            | {"attn_implementation": "sdpa", "pad_token_id": 3, "eos_token_id": [1, 2], "auto_map": {}}
            | {"initializer_range": 0.1, "attention_dropout": 0.1, "transformers_version": "4.31.0"},
        ),
    ],
)  # fmt: skip
def test_what_other_versions_and_tools_write_of_one_base_is_no_difference(
    old: Config, new: Config, tmp_path: Path
) -> None:
    assert told(new, old, tmp_path) == []
    assert told(old, new, tmp_path) == []


def test_every_familys_config_is_the_same_in_full_and_in_short(tmp_path: Path) -> None:
    """transformers writes what differs from a class's defaults, or all: what is worked out counts as what is said."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    seen = 0
    for model_type, kind in CONFIG_MAPPING.items():
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING or model_type in ("gemma4_assistant", "musicgen", "musicgen_melody"):
            continue  # those cannot be made of their defaults
        short, full = (json.loads(kind().to_json_string(use_diff=short)) for short in (True, False))
        assert told(full, short | {"model_type": full["model_type"]}, tmp_path) == [], model_type
        seen += 1
    assert seen > 100


@pytest.mark.parametrize(
    ("family", "changes", "told_of_it"),
    [
        ("hunyuan_v1_moe", {"moe_topk": 3}, "moe_topk is 3, but 1 in a"),
        ("gemma4_text", {"top_k_experts": 3}, "top_k_experts is 3, but null in a"),
        ("afmoe", {"route_scale": 3.0}, "route_scale is 3.0, but 1.0 in a"),
        ("minicpm3", {"scale_emb": 3}, "scale_emb is 3, but 12 in a"),
        ("minicpm3", {"scale_depth": 2.0}, "scale_depth is 2.0, but 1.4 in a"),
        ("biogpt", {"scale_embedding": False}, "scale_embedding is false, but true in a"),
        ("falcon_h1", {"lm_head_multiplier": 3.0}, "lm_head_multiplier is 3.0, but 1.0 in a"),
        ("falcon_h1", {"mlp_multipliers": [1.0, 2.0]}, "mlp_multipliers is [1.0, 2.0], but [1.0, 1.0] in a"),
        ("falcon_h1", {"time_step_limit": [0.0, 1.0]}, "time_step_limit is [0.0, 1.0], but [0.0, Infinity] in a"),
        ("llama4_text", {"attn_scale": 0.2}, "attn_scale is 0.2, but 0.1 in a"),
        ("llama4_text", {"floor_scale": 1}, "floor_scale is 1, but 8192 in a"),
        ("llama4_text", {"use_qk_norm": False}, "use_qk_norm is false, but true in a"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before is false, but true in a"),
        ("falcon", {"parallel_attn": False}, "parallel_attn is false, but true in a"),
        ("gpt_oss", {"swiglu_limit": 3.0}, "swiglu_limit is 3.0, but 7.0 in a"),
        ("recurrent_gemma", {"logits_soft_cap": 3.0}, "logits_soft_cap is 3.0, but 30.0 in a"),
        ("dbrx", {"attn_config": {"clip_qkv": 9}}, "attn_config.clip_qkv is 9, but null in a"),
        ("gpt_neox", {"rotary_pct": 0.5}, 'rope_parameters is {"rope_theta": 10000.0, "partial_rotary_factor": 0.5'),
    ],
)
def test_a_switch_of_any_family_is_compared(family: str, changes: Config, told_of_it: str, tmp_path: Path) -> None:
    (sentence,) = told({"model_type": family} | changes, {"model_type": family}, tmp_path)
    assert sentence.startswith(told_of_it)


def test_lists_of_layers_are_compared_only_where_layers_stay(tmp_path: Path) -> None:
    ours, theirs = ({"model_type": "gpt_neo", "num_layers": 2, "attention_types": [[[kind], 2]]}
                    for kind in ("global", "local"))  # fmt: skip
    assert told(ours, theirs, tmp_path) == ['attention_layers is ["global", "global"], but ["local", "local"] in a']
    assert told(ours, theirs, tmp_path, in_place=False) == []
    deeper = theirs | {"num_layers": 3, "attention_types": [[["local"], 3]]}
    assert told(deeper, ours, tmp_path) == []


def test_of_two_long_values_the_part_is_told_in_which_they_differ(tmp_path: Path) -> None:
    """Both are cut, and would be cut to the same text."""
    one, other = ([1.0] * 40 + [value] + [1.0] * 7 for value in (2.0, 3.0))
    configs = [PHI3 | rope("longrope", short_factor=factors, long_factor=[1.0] * 48) for factors in (one, other)]
    (sentence,) = told(*configs, tmp_path)
    ours, theirs = sentence.removeprefix("rope_parameters is ").removesuffix(" in a").split(", but ")
    assert ours != theirs
    assert "2.0" in ours
    assert "3.0" in theirs
    assert max(len(ours), len(theirs)) <= 60
