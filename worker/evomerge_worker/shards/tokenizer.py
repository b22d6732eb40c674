"""A checkpoint's tokenizer, as transformers loads it."""

import math
from typing import Any

from evomerge_worker.errors import InputError, where_of
from evomerge_worker.shards.checkpoint import Checkpoint


def load_tokenizer(checkpoint: Checkpoint, *, trust_remote_code: bool) -> Any:
    """The tokenizer of `checkpoint`.

    Raises:
        InputError: it has none that transformers can load.
    """
    from transformers import AutoTokenizer

    where = where_of(checkpoint.name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # whatever the tokenizer's own class finds wrong
        reason = " ".join(str(error).split())
        message = f"transformers cannot load its tokenizer (tokenizer.json, tokenizer_config.json): {reason}"
        raise InputError.at(where, message) from error
    longest = tokenizer.model_max_length
    if not isinstance(longest, int | float) or math.isnan(longest):
        raise InputError.at(where, f"model_max_length in tokenizer_config.json is {longest!r}, which is no number")
    return tokenizer
