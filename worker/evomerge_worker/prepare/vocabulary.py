"""Vocabularies as files have them: which token has which id, and whether the embeddings have a row for each."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from evomerge_contract.report import Problem
from evomerge_worker.errors import InputError
from evomerge_worker.merge.tokens import without_row
from evomerge_worker.prepare.config import TRUST
from evomerge_worker.store.index import POINTER, is_pointer

_FAST = "tokenizer.json"
_SLOW = ("*.model", "vocab.json", "vocab.txt", "*.tiktoken")
_SETTINGS = "tokenizer_config.json"
"""All that a tokenizer of bytes needs; others have their tokens in another file."""
_ADD = "add the tokenizer that the model was trained with"


class Vocabulary(NamedTuple):
    """Token to id, and the tokens that have been added to those that the tokenizer has learnt."""

    tokens: dict[str, int]
    added: Collection[str]


def read_vocabulary(folder: Path, where: str, *, code: bool) -> Vocabulary:
    """The tokens of the checkpoint in `folder`.

    Raises:
        InputError: there is no tokenizer that can be loaded, or it needs Python code of its own and `code` is not
            trusted.
    """
    if (folder / _FAST).is_file():
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(folder / _FAST))
        except Exception as error:  # the library raises bare Exception
            reason = POINTER if is_pointer(folder / _FAST) else f"is not a tokenizer ({error}); fetch it again"
            raise InputError.at(where, f"{_FAST} {reason}") from error
        added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        return Vocabulary(tokenizer.get_vocab(with_added_tokens=True), added)
    if not any(next(folder.glob(pattern), None) for pattern in (*_SLOW, _SETTINGS)):
        raise InputError.at(where, f"has no tokenizer ({_FAST}); {_ADD}")
    return _by_transformers(folder, where, code)


def _by_transformers(folder: Path, where: str, code: bool) -> Vocabulary:
    from transformers import AutoTokenizer

    if not code and _own_code(folder):
        raise InputError.at(
            where,
            f"its tokenizer runs on Python code that comes with the model (auto_map in tokenizer_config.json); {TRUST}",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=code, local_files_only=True)
        return Vocabulary(dict(tokenizer.get_vocab()), tokenizer.get_added_vocab())
    except Exception as error:  # whatever the tokenizer's own class finds wrong
        if not any(next(folder.glob(pattern), None) for pattern in _SLOW):
            raise InputError.at(where, f"{_FAST} is missing; {_ADD}") from error
        reason = " ".join(str(error).split())
        raise InputError.at(where, f"its tokenizer cannot be loaded: {reason}") from error


def _own_code(folder: Path) -> bool:
    try:
        return "AutoTokenizer" in json.loads((folder / _SETTINGS).read_bytes()).get("auto_map", {})
    except (OSError, ValueError, AttributeError):
        return False


def check_rows(vocabulary: Vocabulary, config: Any, where: str) -> list[Problem]:
    """A problem if the tokenizer has learnt a token that the embeddings have no row for."""
    rows = getattr(config.get_text_config(), "vocab_size", None)
    message = without_row(*vocabulary, rows if isinstance(rows, int) else None, needed=False)
    return [] if message is None else [Problem(path=where, message=message)]
