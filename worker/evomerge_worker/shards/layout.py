"""Where a model's tensors stand: before, in or after its layers, told by their names and not by a list of models."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Set
from typing import Any

from evomerge_contract.report import Layout
from evomerge_worker.shards.config_parts import said_layers, said_predicting

_NUMBERED = re.compile(r"^((?:[^.]*[^.\d][^.]*\.)*?)(\d+)\.(.+)$")  # the outermost number: experts lie deeper
_BEFORE = re.compile(
    r"embed|(?<![a-z])(wte|wpe|pe)\b|position|token_type|rotary|project_in|vision|visual|image|audio", re.IGNORECASE
)
_AFTER = re.compile(r"embed_out|unembed", re.IGNORECASE)
_APART = re.compile(r"(^|\.)mtp(_\w+)?(\.|$)")
"""Modules of their own that predict further tokens, beside the layers: Qwen3-Next's `mtp`, MiMo's `mtp_layers`."""
_PREDICTS = re.compile(r"(^|\.)(eh_proj|enorm|hnorm|shared_head)\.")
"""What a layer has that predicts further tokens: it joins the last hidden state to the next token's embedding."""


def layout_of(tensors: Mapping[str, tuple[int, ...]], config: Mapping[str, Any] | None = None) -> Layout:
    """The layout of a model with these tensors (name to shape) and this config.json.

    The layers are the numbered modules (`<prefix><i>.…`) that hold most of the parameters: a vision tower or the
    experts inside a layer do not count. Layers may differ: `layer_tensors` holds whatever any of them has.
    Outside the layers, what embeds comes before them, and norms, heads and everything else after; other towers come
    before, since they feed the layers. Layers that predict further tokens, which DeepSeek-V3 and GLM-4.5 number on
    behind those that config.json counts and others keep in a module of their own, have no place in it.

    Raises:
        ValueError: there are no numbered modules, or their numbers have gaps.
    """
    sizes: Counter[str] = Counter()
    parts: dict[str, tuple[str, int, str]] = {}
    for name, shape in tensors.items():
        if (match := _NUMBERED.match(name)) and not stands_apart(name):
            parts[name] = (match[1], int(match[2]), match[3])
            sizes[match[1]] += math.prod(shape)
    if not sizes:
        raise ValueError("no tensor belongs to a numbered layer (like model.layers.0.…)")
    prefix = max(sorted(sizes), key=lambda p: sizes[p])
    of_layer: defaultdict[int, set[str]] = defaultdict(set)
    for its_prefix, number, rest in parts.values():
        if its_prefix == prefix:
            of_layer[number].add(rest)
    if gaps := set(range(max(of_layer) + 1)) - of_layer.keys():
        raise ValueError(f"there is no tensor of layer {prefix}{min(gaps)}, though there are later layers")
    layers = _counted(of_layer, config or {})
    outside = sorted(
        name for name in tensors if (name not in parts or parts[name][0] != prefix) and not stands_apart(name)
    )
    before = [name for name in outside if name in parts or _comes_before(name)]
    return Layout(
        layer_prefix=prefix,
        layers=layers,
        layer_tensors=sorted(set().union(*(of_layer[number] for number in range(layers)))),
        before=before,
        after=[name for name in outside if name not in set(before)],
    )


def stands_apart(name: str) -> bool:
    """Whether a tensor belongs to a module of its own that predicts further tokens."""
    return bool(_APART.search(name))


def split_number(name: str) -> tuple[str, int | None, str | None]:
    """What stands before the number of a tensor's layer, the number, and what stands behind it, if it has one."""
    match = _NUMBERED.match(name)
    return (name, None, None) if match is None else (match[1], int(match[2]), match[3])


def _comes_before(name: str) -> bool:
    return bool(_BEFORE.search(name)) and not _AFTER.search(name)


def _counted(of_layer: Mapping[int, Set[str]], config: Mapping[str, Any]) -> int:
    """The number of layers without those behind them that predict further tokens."""
    said = said_layers(config)
    behind = [tensors for number, tensors in of_layer.items() if said is not None and number >= said]
    if said and behind and (len(behind) <= said_predicting(config) or all(map(_predicts, behind))):
        return said
    return len(of_layer)


def _predicts(tensors: Set[str]) -> bool:
    return any(_PREDICTS.search(name) for name in tensors)
