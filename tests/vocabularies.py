"""Tiny models that know different tokens, for tests."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_models import SPECIALS, VOCABULARY, tiny_checkpoint

OF_BASE = VOCABULARY
OF_A = [*reversed(VOCABULARY[4:-3]), *SPECIALS, "é", "«", "»", "ö", "<tool>"]
"""Other numbers, the last three characters missing, five tokens that the base lacks."""
OF_B = [*SPECIALS, "ß", *VOCABULARY[5:], "é", "<think>", "ö"]
"""One character missing, two tokens that only `OF_A` has too, two of its own."""

ENGLISH = ["the quick brown fox jumps over the lazy dog and the other dogs"] * 9
ITALIAN = ["la volpe veloce salta sopra il cane pigro, and so does the dog"] * 9


def byte_pair_checkpoint(
    folder: Path, family: str, texts: Sequence[str], added: Sequence[str] = (), **options: Any
) -> Path:
    """A tiny checkpoint with a byte-level BPE tokenizer of 290 tokens learnt from `texts`, padded to 320 rows.

    `added` are special tokens after them, such as instruction tuning brings along.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learning = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, learning)
    tokenizer.add_special_tokens(list(added))
    tiny_checkpoint(folder, family, tokenizer=False, vocab_size=320, **options)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
