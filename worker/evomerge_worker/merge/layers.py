"""Results whose layers stand elsewhere than in their sources: of which kind each layer is, and the config for that.

What a config says of single layers, as a list with an entry for each (`layer_types`) or as the number of dense layers
at the front, is taken along with the layers. A layer that is an attention with a window in its source is one in the
result, wherever it stands there.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakKeyDictionary

from evomerge_contract.recipe import Recipe, Slice
from evomerge_contract.report import Problem
from evomerge_worker.errors import InputError, where_of
from evomerge_worker.merge.slices import anchor_of, sliced
from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.config_parts import COUNTS
from evomerge_worker.shards.tied import own_heads, ties_head, untied

Kind = Mapping[str, Any]
"""What a config says of one layer, by the config's keys."""

_SECTIONS = ("text_config", "language_config", "llm_config")
_LIST = re.compile(r"layer|block")  # layer_types, mlp_layer_types, no_rope_layers, layers_block_type, attention_layers
LEADING = ("first_k_dense_replace", "num_dense_layers")
"""The number of layers at the front that have no experts."""
_NUMBERS = ("mlp_only_layers", "moe_layers", "cross_attention_layers", "hybrid_layer_ids", "kv_source_layers")
"""Lists of layer numbers."""
_BOUND = (
    *_NUMBERS,
    "num_kv_shared_layers",
    "hidden_size_per_layer_input",
    "moe_layer_end_index",
    "scale_attn_by_inverse_layer_idx",
)
"""What ties a model to the number and order of its layers, where it is set."""


def result_config(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """The config of the result of a recipe that has been planned: the anchor's, rewritten where layers have moved, or
    where it ties a head that the result has of its own.

    Raises:
        InputError: this family's config cannot say what the recipe asks for.
    """
    anchor, slices = checkpoints[anchor_of(recipe)], _slices(recipe, checkpoints)
    kinds = result_kinds(slices, anchor, checkpoints)
    config = anchor.config if kinds is None else _rewritten(anchor, kinds)
    last = [checkpoints[source.model] for source in slices[-1].sources]
    return untied(config) if ties_head(config) and own_heads([anchor, *last]) else config


def moved_kinds(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> list[Kind] | None:
    """The kind of each layer of the result of a recipe that has been planned; None where all stay where they are."""
    return result_kinds(_slices(recipe, checkpoints), checkpoints[anchor_of(recipe)], checkpoints)


def _slices(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> list[Slice]:
    return sliced(recipe, {name: checkpoint.layout.layers for name, checkpoint in checkpoints.items()})


def result_kinds(
    slices: Sequence[Slice], anchor: Checkpoint, checkpoints: Mapping[str, Checkpoint]
) -> list[Kind] | None:
    """The kind of each layer of the result; None where all layers stay where they are.

    Raises:
        InputError: layers of different kinds are to be merged; a model's layers cannot be moved.
    """
    if not moved(slices, anchor.layout.layers):
        return None
    models = dict.fromkeys([anchor.name, *(source.model for one in slices for source in one.sources)])
    of_model = {model: layer_kinds(checkpoints[model]) for model in models}
    if problems := [*_other_words(of_model, anchor.name)] or [*_unlike(slices, of_model)]:
        raise InputError(*problems)
    return [kind for one in slices for kind in of_model[one.sources[0].model][slice(*one.sources[0].layer_range)]]


def read_as(config_class: Any, config: Mapping[str, Any]) -> Any:
    """What transformers' `config_class` makes of a config.json that holds `config`."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return config_class.from_pretrained(folder, local_files_only=True)


def no_configuration(part: object) -> str:
    """What is wrong with a text_config that is `part`."""
    return f"config.json has a text_config that is no configuration: {json.dumps(part, ensure_ascii=False)[:60]}"


def layer_kinds(checkpoint: Checkpoint) -> list[Kind]:
    """What the config of `checkpoint` says of each of its layers.

    Raises:
        InputError: its layers cannot be moved: they differ in ways that the config does not list layer by layer.
    """
    if checkpoint not in _KNOWN:
        _KNOWN[checkpoint] = _layer_kinds(checkpoint)
    return _KNOWN[checkpoint]


_KNOWN: WeakKeyDictionary[Checkpoint, list[Kind]] = WeakKeyDictionary()
"""Reading a config takes milliseconds, and every candidate asks for those of the same models."""


def _layer_kinds(checkpoint: Checkpoint) -> list[Kind]:
    layers, where = checkpoint.layout.layers, where_of(checkpoint.name)
    config, key = _text_config(checkpoint.config, where)
    if config.get(key) is None:
        raise InputError.at(where, f"its layers cannot be moved, because config.json has no {key}; merge it whole")
    if config[key] != layers:
        raise InputError.at(
            where,
            f"its tensors make {layers} layers, but config.json has {key} {config[key]}: slices that move layers "
            "need both to be the same",
        )
    if bound := [key for key in _BOUND if config.get(key)]:
        raise InputError.at(where, f"its layers cannot be moved, because config.json sets {bound[0]}; merge it whole")
    lists = {key: value for key, value in config.items() if _is_list(key, value, layers)}
    leading = {key: config[key] for key in LEADING if config.get(key) is not None}
    kinds: list[Kind] = [
        {key: value[i] for key, value in lists.items()} | {key: i < value for key, value in leading.items()}
        for i in range(layers)
    ]
    for i, kind in enumerate(kinds):
        like = kinds.index(kind)
        if checkpoint.layer_tensors[i] != checkpoint.layer_tensors[like]:
            message = (
                f"layers {like} and {i} have different tensors, and config.json does not say so layer by layer: its "
                "layers cannot be moved; merge it whole"
            )
            raise InputError.at(where, message)
    return kinds


def _other_words(of_model: Mapping[str, Sequence[Kind]], anchor: str) -> Iterator[Problem]:
    """Models whose configs tell layers apart by other keys than the anchor's."""
    expected = list(of_model[anchor][0])
    for model, (kind, *_) in of_model.items():
        if list(kind) != expected:
            ours, theirs = (", ".join(keys) or "nothing" for keys in (kind, expected))
            message = (
                f"its config tells layers apart by {ours}, but that of {anchor} by {theirs}; leave one of them out"
            )
            yield Problem(path=where_of(model), message=message)


def _unlike(slices: Sequence[Slice], of_model: Mapping[str, Sequence[Kind]]) -> Iterator[Problem]:
    """Layers that are to be merged with one of another kind."""
    for first, other in ((one.sources[0], other) for one in slices for other in one.sources[1:]):
        for ours, theirs in zip(range(*first.layer_range), range(*other.layer_range), strict=True):
            kind, its_kind = of_model[first.model][ours], of_model[other.model][theirs]
            if kind != its_kind:
                said = f"layer {theirs} is {_told(its_kind)}, but layer {ours} of {first.model} is {_told(kind)}"
                message = f"{said}; choose a layer_range that brings like to like"
                yield Problem(path=where_of(other.model), message=message)


def moved(slices: Sequence[Slice], layers: int) -> bool:
    """Whether the result has another number of layers than the anchor's `layers`, or takes one from elsewhere."""
    place = 0
    for one in slices:
        start, end = one.sources[0].layer_range
        if end > start and any(source.layer_range[0] != place for source in one.sources):
            return True
        place += end - start
    return place != layers


def _rewritten(anchor: Checkpoint, kinds: Sequence[Kind]) -> dict[str, Any]:
    """The anchor's config for layers of these kinds."""
    where = where_of(anchor.name)
    _, count_key = _text_config(anchor.config, where)
    changes: dict[str, Any] = {count_key: len(kinds)}
    for key in kinds[0]:
        values = [kind[key] for kind in kinds]
        changes[key] = _leading(key, values, where) if key in LEADING else values
    if "attention_layers" in changes:  # GPT-Neo, which computes them from this
        changes["attention_types"] = [[[kind], 1] for kind in changes["attention_layers"]]
    config: dict[str, Any] = json.loads(json.dumps(anchor.config))
    _section(config).update(changes)
    understood, _ = _text_config(config, where)
    if wrong := [key for key, value in changes.items() if understood.get(key) != value]:
        message = f"its family computes {wrong[0]} by itself, so its layers cannot be moved; merge it whole"
        raise InputError.at(where, message)
    return config


def _leading(key: str, leads: Sequence[bool], where: str) -> int:
    """So many of the layers at the front are leading ones, and none of the others."""
    number = sum(leads)
    if not all(leads[:number]):
        late = number + leads[number:].index(True)
        raise InputError.at(
            where,
            f"layer {late} of the result would be a dense one behind layers with experts, but config.json can only say "
            f"how many stand at the front ({key}); put the slices with dense layers first",
        )
    return number


def _text_config(config: dict[str, Any], where: str) -> tuple[dict[str, Any], str]:
    """The config of the language model with its class's defaults, and the key that holds the number of layers.

    A family that transformers does not know has no defaults.

    Raises:
        InputError: transformers does not accept it, or it names no number of layers.
    """
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        try:
            known = read_as(CONFIG_MAPPING[model_type], config).get_text_config(decoder=True)
        except Exception as error:  # whatever the model's own class finds wrong
            reason = " ".join(str(error).split())
            raise InputError.at(where, f"transformers does not accept the config: {reason}") from error
        if not isinstance(known, PreTrainedConfig):
            raise InputError.at(where, no_configuration(known))
        return known.to_dict(), type(known).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    section = _section(config)
    for key in COUNTS:
        if key in section:
            return section, key
    raise InputError.at(where, f"config.json names no number of layers ({', '.join(COUNTS)})")


def _section(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a raw config that is about the language model."""
    return next((config[key] for key in _SECTIONS if isinstance(config.get(key), dict)), config)


def _is_list(key: str, value: object, layers: int) -> bool:
    return bool(_LIST.search(key)) and key not in _NUMBERS and isinstance(value, list) and len(value) == layers


def _told(kind: Kind) -> str:
    return ", ".join(_entries(kind)) or "an ordinary one"


def _entries(kind: Kind) -> Iterator[str]:
    for key, value in kind.items():
        yield ("dense" if value else "one with experts") if key in LEADING else f"{value} ({key})"
