"""Configurations: read as transformers reads them, and compared where a difference changes what the weights mean."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evomerge_contract.report import Problem
from evomerge_worker.errors import InputError
from evomerge_worker.store.wanted import companions

COMPARED = (
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "tie_word_embeddings",
    # rotary position embeddings
    "rope_parameters",
    "partial_rotary_factor",
    # norms, by the names that families give their epsilon
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "norm_epsilon",
    "norm_eps",
    # activation
    "hidden_act",
    "hidden_activation",
    "activation_function",
    # attention
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "no_rope_layers",
    "attention_chunk_size",
    "attention_bias",
    "clip_qkv",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "position_embedding_type",
    "use_parallel_residual",
    # experts
    "num_local_experts",
    "num_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "norm_topk_prob",
    "routed_scaling_factor",
    "scoring_func",
    "topk_method",
    "n_group",
    "topk_group",
    # how heads are split in multi-head latent attention
    "qk_rope_head_dim",
    "qk_nope_head_dim",
    "v_head_dim",
    "rope_interleave",
    # scales of Granite, Cohere and their like
    "embedding_multiplier",
    "attention_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "logit_scale",
)
"""Fields that decide what a forward pass computes from the same weights, by transformers' common names.

Lengths, dropout, initialisation and special tokens may differ.
"""

OF_LAYERS = ("layer_types", "max_window_layers", "no_rope_layers")
"""Those of them that tell layers apart: not compared between models of another depth, and where layers move."""

TRUST = (
    "set spec.trustRemoteCode: true in the manifest if you trust its authors (evomerge merge, which has no manifest, "
    "runs no such code)"
)
"""What to do about a model with code of its own."""

_TOKENIZER = "tokenizer.json"
_ABSENT = object()
_LONGEST = 60


def read_config(folder: Path, where: str, *, code: bool) -> Any:
    """The transformers configuration of a checkpoint, with the defaults of its class filled in.

    Raises:
        InputError: it is none, or it needs Python code of its own and `code` is not trusted.
    """
    raw = _object(folder / "config.json")
    if raw is None:
        return None  # opening the checkpoint has told so
    from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise InputError.at(where, "config.json has no model_type, so it is no configuration of a transformers model")
    if model_type not in CONFIG_MAPPING:
        if "auto_map" not in raw:
            raise InputError.at(
                where, f"config.json has model_type {model_type}, which this transformers does not know"
            )
        if not code:
            raise InputError.at(
                where,
                f"{model_type} runs on Python code that comes with the model (auto_map in config.json); {TRUST}",
            )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=code, local_files_only=True)
        of_text = config.get_text_config()
    except Exception as error:  # whatever the model's own class finds wrong
        reason = " ".join(str(error).split())
        raise InputError.at(where, f"transformers does not accept config.json: {reason}") from error
    if not isinstance(of_text, PreTrainedConfig):
        raise InputError.at(where, f"config.json has a text_config that is no configuration: {_shown(of_text)}")
    return config


def unread_companions(folder: Path, where: str) -> list[Problem]:
    """A problem for each of the settings beside a checkpoint's weights that is no JSON object.

    transformers takes all of them for one; reading tokenizer.json tells of that one by itself.
    """
    files = [path for path in companions(folder, code=False) if path.suffix == ".json" and path.name != _TOKENIZER]
    broken = [path.name for path in files if _object(path) is None]
    return [Problem(path=where, message=f"{name} is not a JSON object; fetch it again") for name in broken]


def differences(config: Any, other: Any, other_name: str, *, in_place: bool = True) -> Iterator[str]:
    """Where `config` computes differently from `other`, a sentence each; another architecture is one difference.

    `in_place`: each layer is merged with the layers of its number.
    """
    if config.model_type != other.model_type:
        yield f"architecture (model_type) is {config.model_type}, but {other.model_type} in {other_name}"
        return
    config, other = config.get_text_config(), other.get_text_config()
    of_one_depth = getattr(config, "num_hidden_layers", None) == getattr(other, "num_hidden_layers", None)
    for field in COMPARED:
        if field in OF_LAYERS and not (in_place and of_one_depth):
            continue
        ours, theirs = getattr(config, field, _ABSENT), getattr(other, field, _ABSENT)
        if ours != theirs:
            yield f"{field} is {_shown(ours)}, but {_shown(theirs)} in {other_name}"


def _object(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds, if that is an object."""
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return raw if isinstance(raw, dict) else None


def _shown(value: object) -> str:
    if value is _ABSENT:
        return "absent"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
