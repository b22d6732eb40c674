"""Heads that are tied to the embeddings: one tensor in memory, of which a checkpoint may hold a copy or not."""

from collections.abc import Mapping, Set
from typing import Any

from evomerge_worker.shards.checkpoint import Checkpoint
from evomerge_worker.shards.config_parts import parts
from evomerge_worker.shards.token_rows import row_tensors

_KEY = "tie_word_embeddings"


def ties_head(config: Mapping[str, Any]) -> bool:
    """Whether a model's config.json ties its head to its embeddings; a silent one does what its class does."""
    for part in parts(config):
        if isinstance(part.get(_KEY), bool):
            return bool(part[_KEY])
    from transformers import CONFIG_MAPPING

    model_type = str(config.get("model_type"))
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
