"""A checkpoint's tokenizer, as transformers loads it."""

from typing import Any

from evomerge_worker.errors import InputError, where_of
from evomerge_worker.shards.checkpoint import Checkpoint


def load_tokenizer(checkpoint: Checkpoint, *, trust_remote_code: bool) -> Any:
    """The tokenizer of `checkpoint`.

    Raises:
        InputError: it has none that transformers can load.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            checkpoint.folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise InputError.at(where_of(checkpoint.name), f"transformers cannot load its tokenizer: {error}") from error
