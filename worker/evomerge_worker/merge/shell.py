"""A folder with everything of a result but its weights: config, generation config, tokenizer."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.config_parts import token_rows, with_token_rows
from evomerge_worker.shards.tied import ties_head, with_tie
from evomerge_worker.store.companions import GENERATION, companions, copy_files, of_tokenizer

_HOW_LOADED = ("is_local", "local_files_only", "name_or_path")
_NUMBERS_OF_TOKENS = re.compile(r"token_ids?$|token_index$|suppress_tokens$|bad_words_ids$")


def write_shell(anchor: Checkpoint, giver: Checkpoint, united: Any, config: Mapping[str, Any], *, code: bool) -> Any:
    """Write the shell of a result to a temporary folder, which lives as long as what is returned.

    Configuration, `code` and whatever else goes with weights are those of `anchor`; the tokenizer is `united`, else
    that of `giver`. `config` is written as it is, and token numbers in the generation config are those of `giver`.
    """
    held = TemporaryDirectory(prefix="evomerge-")
    folder = Path(held.name)
    _write(folder / "config.json", config)
    if united is not None:
        _save_tokenizer(united, folder)
    theirs = companions(giver.folder, code=code)
    copy_files(giver.folder, folder, [n for n in theirs if n.endswith(".py") or (united is None and of_tokenizer(n))])
    ours = companions(anchor.folder, code=code)
    copy_files(anchor.folder, folder, [n for n in ours if n != GENERATION and not of_tokenizer(n)])
    if (anchor.folder / GENERATION).is_file():
        _write(folder / GENERATION, with_numbers_of(_read(anchor.folder), _read(giver.folder)))
    return held


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer without what tells only how it was loaded here."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    _write(path, {k: v for k, v in json.loads(path.read_bytes()).items() if k not in _HOW_LOADED})


def with_numbers_of(settings: Mapping[str, Any], giver: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` with the numbers that `giver` has for special tokens, in configs inside it too.

    Number by number: what only `settings` has is left out, since it means another token in the giver's vocabulary.
    """
    kept = {
        key: with_numbers_of(value, giver.get(key) or {}) if isinstance(value, dict) else value
        for key, value in settings.items()
        if not _NUMBERS_OF_TOKENS.search(key)
    }
    return kept | {key: value for key, value in giver.items() if _NUMBERS_OF_TOKENS.search(key)}


def config_of(giver: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The config `giver` for a model whose own config is `own`: its tokens and its head stay what they are."""
    config, rows = with_numbers_of(giver, own), token_rows(own)
    return with_tie(config if rows is None else with_token_rows(config, rows), tied=ties_head(own))


def _read(folder: Path) -> dict[str, Any]:
    path = folder / GENERATION
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


def _write(path: Path, settings: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
