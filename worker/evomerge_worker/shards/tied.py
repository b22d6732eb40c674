"""Heads that are tied to the embeddings: one tensor in memory, of which a checkpoint may hold a copy or not.

A head in the files that differs from the embeddings is one of its own, whatever config.json says: transformers takes it
for one.
"""

from collections.abc import Iterable, Mapping, Set
from functools import cache
from typing import Any

from evomerge_worker.shards.checkpoint import Checkpoint
from evomerge_worker.shards.config_parts import LANGUAGE, parts
from evomerge_worker.shards.token_rows import row_tensors

_KEY = "tie_word_embeddings"


def ties_head(config: Mapping[str, Any]) -> bool:
    """Whether a model's config.json ties its head to its embeddings; a silent one does what its class does."""
    for part in parts(config):
        if isinstance(part.get(_KEY), bool):
            return bool(part[_KEY])
    return _class_ties(str(config.get("model_type")))


@cache
def _class_ties(model_type: str) -> bool:
    from transformers import CONFIG_MAPPING

    return model_type not in CONFIG_MAPPING or bool(getattr(CONFIG_MAPPING[model_type](), _KEY, True))


def held_heads(checkpoint: Checkpoint) -> Set[str]:
    """Tied heads that the checkpoint holds all the same."""
    heads = checkpoint.head_copies
    return heads if heads and ties_head(checkpoint.config) else frozenset()


def tied_embeddings(checkpoint: Checkpoint) -> str | None:
    """The embeddings of a model that holds no head of its own, being tied to them; None if it is not so."""
    tables = [name for name in row_tensors(checkpoint) if len(checkpoint.shape(name)) == 2]
    before = [name for name in tables if name in checkpoint.layout.before]
    return before[0] if before == tables and before and ties_head(checkpoint.config) else None


def own_heads(checkpoints: Iterable[Checkpoint]) -> set[str]:
    """The heads, by name, that any of the checkpoints holds and that are no copies of its embeddings."""
    return {name for checkpoint in checkpoints for name in _heads(checkpoint) if name not in checkpoint.head_copies}


def stand_in(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> str:
    """The tensor that does the work of `name`, of that shape in another model: the embeddings where the checkpoint does
    not hold its head, being tied to them."""
    if name in checkpoint:
        return name
    embeddings = tied_embeddings(checkpoint)
    return name if embeddings is None or checkpoint.shape(embeddings) != shape else embeddings


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` for a head of its own."""
    return with_tie(config, tied=False)


def with_tie(config: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    """`config` for a head that is tied to the embeddings or is not; as it is where that would change more.

    T5 and its like scale what goes into a head that is tied.
    """
    if ties_head(config) == tied or config.get("is_encoder_decoder"):
        return dict(config)
    nested = {key: {**config[key], _KEY: tied} for key in LANGUAGE if _KEY in (config.get(key) or {})}
    return {**config, **nested, _KEY: tied}


def _heads(checkpoint: Checkpoint) -> list[str]:
    after = set(checkpoint.layout.after)
    return [name for name in row_tensors(checkpoint) if name in after and len(checkpoint.shape(name)) == 2]
