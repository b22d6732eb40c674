"""Tiny seeded checkpoints of several families, for tests: about 50,000 parameters and a character tokenizer each.

Every checkpoint of a family descends from one common initialisation: `seed` adds small noise to each of its tensors
(norms and biases too, so that no merge of them is trivial); seed 0 is the ancestor itself.
Torch and transformers are imported when first needed: importing this module is cheap.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Tiny = Callable[..., Path]
"""The fixture `tiny`: the arguments of `tiny_checkpoint` but for the folder, which it chooses and returns."""

CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ +-*=.,:;?!'()<>/|_\n〇一二三四五六七八九"
SPECIALS = ["<pad>", "<s>", "</s>", "<unk>"]
VOCABULARY = SPECIALS + list(CHARACTERS)
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}|{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

_SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = _SIZES | {"num_key_value_heads": 2, "head_dim": 8}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_GROUPED, "tie_word_embeddings": False},
    "llama-tied": {"model_type": "llama", **_GROUPED, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", **_GROUPED},
    "qwen2": {"model_type": "qwen2", **_GROUPED},
    "qwen3": {"model_type": "qwen3", **_GROUPED},
    "gemma": {"model_type": "gemma", **_GROUPED},
    "gemma2": {"model_type": "gemma2", **_GROUPED, "sliding_window": 16},
    "gpt_neox": {"model_type": "gpt_neox", **_SIZES, "tie_word_embeddings": False},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": len(VOCABULARY),
        "n_embd": 32,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "phi3": {"model_type": "phi3", **_SIZES, "num_key_value_heads": 2},
    "mixtral": {"model_type": "mixtral", **_GROUPED, "num_local_experts": 2, "num_experts_per_tok": 1},
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        **_SIZES,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
    "bert": {"model_type": "bert", **_SIZES, "type_vocab_size": 2},
}
"""A configuration per family; `tiny_checkpoint` takes keys that override it."""


def tiny_checkpoint(
    folder: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: str = "bfloat16",
    noise: float = 0.02,
    max_shard_size: str = "5GB",
    chat_template: bool = False,
    tokenizer: bool = True,
    vocabulary: Sequence[str] | None = None,
    **config: Any,
) -> Path:
    """Write a checkpoint of `family` to `folder` (safetensors, config, generation config, tokenizer); return `folder`.

    With a `vocabulary` (tokens by their ids) the model has a row for each of them, unless `vocab_size` says otherwise,
    and its special tokens have the ids that they have there.
    A `max_shard_size` such as "20KB" gives several shards with an index. `config` overrides the family's configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    values = FAMILIES[family] | (_numbers(vocabulary) if vocabulary is not None else {}) | config
    settings = AutoConfig.for_model(**values)
    auto = AutoModelForMaskedLM if values["model_type"] == "bert" else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(settings)
        if seed:
            torch.manual_seed(seed)
            with torch.no_grad():
                for tensor in model.state_dict(keep_vars=True).values():
                    if tensor.is_floating_point():
                        tensor.add_(torch.randn_like(tensor), alpha=noise)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer:
        write_tokenizer(folder, VOCABULARY if vocabulary is None else vocabulary, chat_template=chat_template)
    return folder


def _numbers(vocabulary: Sequence[str]) -> dict[str, int]:
    """The keys of a configuration that a vocabulary decides."""
    special = {
        f"{name}_token_id": vocabulary.index(token)
        for name, token in zip(("pad", "bos", "eos"), SPECIALS, strict=False)
    }
    return {"vocab_size": len(vocabulary), **special}


def write_tokenizer(folder: Path, vocabulary: Sequence[str] = VOCABULARY, *, chat_template: bool = False) -> None:
    """Write a tokenizer of single characters (`<s>` first, unknown ones become `<unk>`) over `vocabulary` to `folder`.

    Tokens of several characters, such as `<tool>`, are added tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    numbers = {token: i for i, token in enumerate(vocabulary)}
    characters = Tokenizer(models.WordLevel(numbers, unk_token=SPECIALS[3]))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    characters.decoder = decoders.Fuse()
    characters.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", numbers["<s>"])])
    characters.add_special_tokens([token for token in vocabulary if token in SPECIALS])
    characters.add_tokens([token for token in vocabulary if len(token) > 1 and token not in SPECIALS])
    characters.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 64,
        "clean_up_tokenization_spaces": False,
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    if chat_template:
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def write_tensors(folder: Path, tensors: dict[str, Any], *, config: dict[str, Any] | None = None) -> Path:
    """Write bare tensors as a one-file checkpoint, with a config.json of `config`; return `folder`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    return folder
