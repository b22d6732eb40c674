"""What a config.json, as it lies there, says of its language model."""

from collections.abc import Mapping
from typing import Any

COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""How the number of layers is called."""
LANGUAGE = ("text_config", "llm_config", "language_config")
"""Where the configuration of a model with several parts holds that of its language model."""
_ROWS = "vocab_size"
_PREDICTING = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_layers")
"""How the number of layers behind them that predict further tokens is called."""


def parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A config, and those in it that are about its language model."""
    return [config, *(config[key] for key in LANGUAGE if isinstance(config.get(key), dict))]


def said_layers(config: Mapping[str, Any]) -> int | None:
    """The number of layers of the language model; None if the config is silent."""
    return _number(config, COUNTS)


def said_predicting(config: Mapping[str, Any]) -> int:
    """The number of layers behind them that predict further tokens."""
    return _number(config, _PREDICTING) or 0


def token_rows(config: Mapping[str, Any]) -> int | None:
    """The rows that a model's embeddings have according to its config.json, padding included; None if it is silent."""
    for part in parts(config):
        if isinstance(part.get(_ROWS), int):
            return int(part[_ROWS])
    return None


def with_token_rows(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """`config` for embeddings of so many rows."""
    changed = {**config, _ROWS: rows} if _ROWS in config else dict(config)
    parts_of_it = {key: config[key] for key in LANGUAGE if isinstance(config.get(key), dict)}
    nested = {key: {**part, _ROWS: rows} for key, part in parts_of_it.items() if _ROWS in part}
    return changed | nested


def _number(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    for part in reversed(parts(config)):
        for key in keys:
            if isinstance(part.get(key), int):
                return int(part[key])
    return None
