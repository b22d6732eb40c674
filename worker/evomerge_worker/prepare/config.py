"""Configurations: read as transformers reads them, and compared where a difference changes what the weights mean."""

import json
import re
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, NamedTuple

from evomerge_contract.report import Problem
from evomerge_worker.errors import InputError
from evomerge_worker.merge.layers import LEADING, no_configuration
from evomerge_worker.store.companions import settings
from evomerge_worker.store.index import POINTER, is_pointer

_HARMLESS = re.compile(
    r"_.*|architectures|model_type|transformers_version|auto_map|.*dtype"  # names, versions, number formats
    r"|problem_type|id2label|label2id|languages|default_language|lang_id|summary_.*|classifier_.*"  # tasks
    r"|.*_token_id|.*_tokens|(pad|bos|eos|unk|mask)_index|.*vocab_size.*"  # tokens, which vocabularies tell
    r"|max_.*|model_max_length|n_positions|n_ctx|context_length"  # lengths, and max_window_layers: see layer_types
    r"|.*drop.*|.*loss.*|.*jitter.*|.*init.*"  # training
    r"|use_cache|output_(attentions|hidden_states|router_logits)|return_.*|num_logits_to_keep"  # what is given back
    r"|pretraining_tp|chunk_size(_feed_forward)?|mamba_chunk_size|attn_impl.*|.*_in_fp32|reorder_and_upcast_attn"
    r"|slow_but_exact|use_(mambapy|mamba_kernels|associative_scan|mem_eff_path)|.*quantization_config"  # how
    r"|num_(hidden_)?layers|n_layers?|num_nextn_predict_layers|num_mtp_layers|mtp_.*"  # counts that tensors tell
    r"|use_sliding_window|no_rope_layer_interval|attention_types|ignore_keys_at_rope_validation"  # resolved into others
)
"""Fields that may differ: they leave what a forward pass computes from the same weights alone.

Everything else that a configuration's class knows is compared, so that a family with a new switch is not merged
blindly. What a class does not know, and transformers does not read, is not: tools leave much of that behind.
"""

_ROPE = ("rope_theta", "rope_scaling", "partial_rotary_factor")
"""What transformers gathers in rope_parameters, wherever config.json has it."""
_LAYERS = re.compile(r"layer|block|idx|indices")
"""Lists that tell layers apart, like `LEADING`: not compared between models of another depth, and where layers move."""
_SIZE = re.compile(r"(?!.*(window|chunk|block|top|rotary))(.*_)?(size|dim|rank|heads?|experts|embd|inner|model)")
_UNSET = ("head_dim", "num_key_value_heads", "intermediate_size", "n_inner")
"""Sizes that some classes work out where they are not set: tensors tell whether they are the same."""

TRUST = (
    "set spec.trustRemoteCode: true in the manifest if you trust its authors (evomerge merge, which has no manifest, "
    "runs no such code)"
)
"""What to do about a model with code of its own."""

_TOKENIZER = "tokenizer.json"
_ABSENT = object()
_LONGEST = 60
_SEEN = 8
"""So many letters from where two values begin to differ are to be seen."""


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
        raise InputError.at(where, no_configuration(of_text))
    return config


def unread_companions(folder: Path, where: str) -> list[Problem]:
    """A problem for each file beside a checkpoint's weights that Git has not fetched, or that should be a JSON object.

    transformers takes all settings for one; reading tokenizer.json tells of that one by itself.
    """
    files = [path for path in settings(folder, code=False) if path.name != _TOKENIZER]
    told = {path.name: POINTER for path in files if is_pointer(path)}
    for path in files:
        if path.suffix == ".json" and _object(path) is None:
            told.setdefault(path.name, "is not a JSON object; fetch it again")
    return [Problem(path=where, message=f"{name} {reason}") for name, reason in told.items()]


class Difference(NamedTuple):
    """A field in which two configurations differ, in words.

    `of_tensors`: it says what the tensors are. `of_layers`: it says so layer by layer, and other layers may be alike.
    """

    sentence: str
    of_tensors: bool
    of_layers: bool = False


def differences(config: Any, other: Any, other_name: str, *, in_place: bool = True) -> Iterator[Difference]:
    """Where `config` computes differently from `other`; another architecture is one difference.

    `in_place`: each layer is merged with the layers of its number.
    """
    if config.model_type != other.model_type:
        told = f"architecture (model_type) is {config.model_type}, but {other.model_type} in {other_name}"
        yield Difference(told, of_tensors=True)
        return
    for field, ours, theirs in _differing(config, other, in_place):
        one, two = _shown_apart(ours, theirs)
        told = f"{field} is {one}, but {two} in {other_name}"
        yield Difference(told, of_tensors=_tells_tensors(field), of_layers=field in LEADING)


def other_sizes(config: Any, other: Any, *, in_place: bool = True) -> bool:
    """Whether the tensors of both cannot have the same names and shapes: what differs in them follows from that.

    `in_place`: as for `differences`.
    """
    if config.model_type != other.model_type:
        return True
    return any(_tells_tensors(field) for field, *_ in _differing(config, other, in_place))


def _tells_tensors(field: str) -> bool:
    return field in LEADING or bool(_SIZE.fullmatch(field))


def _differing(config: Any, other: Any, in_place: bool) -> Iterator[tuple[str, object, object]]:
    """The fields that make a difference, with both values."""
    config, other = config.get_text_config(), other.get_text_config()
    of_one_depth = getattr(config, "num_hidden_layers", None) == getattr(other, "num_hidden_layers", None)
    ours, theirs = _settings(config), _settings(other)
    for field in dict.fromkeys([*ours, *theirs]):
        one, two = ours.get(field, _ABSENT), theirs.get(field, _ABSENT)
        of_layers = field in LEADING or (_LAYERS.search(field) and isinstance(one, list))
        if of_layers and not (in_place and of_one_depth):
            continue
        if field == "tie_word_embeddings" and not getattr(config, "is_encoder_decoder", False):
            continue  # what the head is, its tensors tell
        if not (_same(field, one, two) or _follows(field, ours, theirs)):
            yield field, one, two


def _follows(field: str, *settings: dict[str, object]) -> bool:
    """Whether a size is in both what others make it, which differ: those have been told."""
    if field == "head_dim":
        return all(one.get(field) == _quotient(one) for one in settings)
    heads = [one.get("num_attention_heads") for one in settings]
    return field == "num_key_value_heads" and heads == [one.get(field) for one in settings]


def _quotient(settings: dict[str, object]) -> int | None:
    """The width of a head by that of the model and the number of heads."""
    width, heads = settings.get("hidden_size"), settings.get("num_attention_heads")
    return width // heads if isinstance(width, int) and isinstance(heads, int) and heads else None


def _same(field: str, one: object, two: object) -> bool:
    """Whether two values of a field mean the same: what is off may be false or not set."""
    if field in _UNSET and None in (one, two):
        return True
    return one == two or all(value is None or value is False for value in (one, two))


def _settings(config: Any) -> dict[str, object]:
    """What a configuration says of how its model computes, by field; of a part of it as part.field."""
    known = _known(config)
    found: dict[str, object] = {}
    for key, value in vars(config).items():
        if key not in known or _HARMLESS.fullmatch(key) or (key in _ROPE and "rope_parameters" in known):
            continue
        if hasattr(value, "get_text_config"):
            found |= {f"{key}.{field}": inner for field, inner in _settings(value).items()}
        else:
            found[key] = _plain(value)
    return found


def _known(config: Any) -> Set[str]:
    """The fields that the class of a configuration gives every one of it."""
    try:
        return set(vars(type(config)()))
    except Exception:  # a class that comes with a model need not do without values
        return set(vars(config))


def _plain(value: Any) -> Any:
    """A value as JSON has it, of mappings what is set, without the name that rope_type had before."""
    if isinstance(value, dict):
        old = "type" if "rope_type" in value else None
        return {key: _plain(part) for key, part in value.items() if part is not None and key != old}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _object(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds, if that is an object."""
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return raw if isinstance(raw, dict) else None


def _shown_apart(ours: object, theirs: object) -> tuple[str, str]:
    """Two different values as texts; of long ones the part in which they differ."""
    texts = [_text(value) for value in (ours, theirs)]
    same = next((i for i, (one, two) in enumerate(zip(*texts, strict=False)) if one != two), min(map(len, texts)))
    start = 0 if same + _SEEN < _LONGEST else same - _LONGEST // 2
    one, two = (_cut(text, start) for text in texts)
    return one, two


def _text(value: object) -> str:
    return "absent" if value is _ABSENT else json.dumps(value, ensure_ascii=False, default=str)


def _cut(text: str, start: int) -> str:
    """So many letters from `start` on; all of a text that is short enough."""
    if len(text) <= _LONGEST:
        return text
    end = start + _LONGEST - 2
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"
