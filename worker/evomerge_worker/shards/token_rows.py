"""Which tensors have a row per token, told by names and shapes and not by a list of models."""

import re
from collections.abc import Iterable

from evomerge_worker.shards.checkpoint import Checkpoint
from evomerge_worker.shards.config_parts import token_rows

_OTHER = re.compile(
    r"norm|(^|\.)ln_|(?<![a-z])(wpe|pe)\b|position|token_type|rotary|project|vision|visual|image|audio", re.IGNORECASE
)


def row_tensors(checkpoint: Checkpoint) -> list[str]:
    """The tensors whose first axis is the vocabulary: input embeddings, and a head with its bias.

    They stand outside the layers and have as many rows as config.json says; what counts other things (positions, token
    types, the width of a norm) may have as many by chance, and is told apart by its name.
    """
    return _of_tokens(checkpoint, (*checkpoint.layout.before, *checkpoint.layout.after))


def carried_row_tensors(checkpoint: Checkpoint) -> list[str]:
    """Those of them that belong to layers which are carried along."""
    return _of_tokens(checkpoint, checkpoint.carried)


def _of_tokens(checkpoint: Checkpoint, names: Iterable[str]) -> list[str]:
    rows = token_rows(checkpoint.config)
    return [name for name in names if checkpoint.shape(name)[:1] == (rows,) and not _OTHER.search(name)]
