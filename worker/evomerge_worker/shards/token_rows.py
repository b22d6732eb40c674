"""Which tensors have a row per token, told by names and shapes and not by a list of models."""

import re
from collections.abc import Mapping
from typing import Any

from evomerge_worker.shards.checkpoint import Checkpoint

_KEY = "vocab_size"
_LANGUAGE = ("text_config", "llm_config", "language_config")
"""Where the configuration of a model with several parts holds that of its language model."""
_OTHER = re.compile(
    r"norm|(^|\.)ln_|(?<![a-z])(wpe|pe)\b|position|token_type|rotary|project|vision|visual|image|audio", re.IGNORECASE
)


def token_rows(config: Mapping[str, Any]) -> int | None:
    """The rows that a model's embeddings have according to its config.json, padding included; None if it is silent."""
    for part in parts(config):
        if isinstance(part.get(_KEY), int):
            return int(part[_KEY])
    return None


def with_token_rows(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """`config` for embeddings of so many rows."""
    changed = {**config, _KEY: rows} if _KEY in config else dict(config)
    parts_of_it = {key: config[key] for key in _LANGUAGE if isinstance(config.get(key), dict)}
    nested = {key: {**part, _KEY: rows} for key, part in parts_of_it.items() if _KEY in part}
    return changed | nested


def row_tensors(checkpoint: Checkpoint) -> list[str]:
    """The tensors whose first axis is the vocabulary: input embeddings, and a head with its bias.

    They stand outside the layers and have as many rows as config.json says; what counts other things (positions, token
    types, the width of a norm) may have as many by chance, and is told apart by its name.
    """
    rows, layout = token_rows(checkpoint.config), checkpoint.layout
    return [
        name
        for name in (*layout.before, *layout.after)
        if checkpoint.shape(name)[:1] == (rows,) and not _OTHER.search(name)
    ]


def parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A config, and those in it that are about its language model."""
    return [config, *(config[key] for key in _LANGUAGE if isinstance(config.get(key), dict))]
