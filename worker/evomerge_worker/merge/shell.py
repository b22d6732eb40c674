"""A folder with everything of a result but its weights: config, generation config, tokenizer."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from evomerge_worker.shards import Checkpoint
from evomerge_worker.store.wanted import companions

_GENERATION = "generation_config.json"
_HOW_LOADED = ("is_local", "local_files_only", "name_or_path")
_NUMBERS_OF_TOKENS = re.compile(r"token_ids?$|token_index$|suppress_tokens$|bad_words_ids$")


def write_shell(anchor: Checkpoint, giver: Checkpoint, united: Any, config: Mapping[str, Any], *, code: bool) -> Any:
    """Write the shell of a result to a temporary folder, which lives as long as what is returned.

    Configuration and `code` are those of `anchor`; the tokenizer is `united`, else that of `giver`. `config` is written
    as it is, and token numbers in the generation config are those of `giver`.
    """
    held = TemporaryDirectory(prefix="evomerge-")
    folder = Path(held.name)
    _write(folder / "config.json", config)
    if united is not None:
        _save_tokenizer(united, folder)
    for path in companions(giver.folder, code=code):
        if path.name != _GENERATION and (united is None or path.suffix == ".py"):
            shutil.copyfile(path, folder / path.name)
    for path in companions(anchor.folder, code=code):
        if path.suffix == ".py":
            shutil.copyfile(path, folder / path.name)
    if (anchor.folder / _GENERATION).is_file():
        _write(folder / _GENERATION, with_numbers_of(_read(anchor.folder), _read(giver.folder)))
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


def _read(folder: Path) -> dict[str, Any]:
    path = folder / _GENERATION
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


def _write(path: Path, settings: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
