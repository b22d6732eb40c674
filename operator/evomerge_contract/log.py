"""The lines of a search log: checksummed canonical JSON; the first names the run, each further one a candidate."""

import json
import zlib
from collections.abc import Sequence
from typing import Any

from evomerge_contract.base import canonical_json

LOG_NAME = "log.jsonl"
BEGINNING = b'{"crc32":"'
"""How every line begins, a torn one too."""


def first_entry(identity: dict[str, Any], baselines: Sequence[str] | None) -> dict[str, Any]:
    """The entry that names a run, and the baselines that it is pinned to; runs begun before that have none."""
    return {"run": identity} | ({} if baselines is None else {"baselines": list(baselines)})


def log_line(entry: dict[str, Any]) -> bytes:
    """The line of a first entry or of `{"candidate": …}`, line feed included."""
    text = canonical_json(entry)
    return f'{{"crc32":"{zlib.crc32(text.encode()):08x}","entry":{text}}}\n'.encode()


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The entry of a line; None when the line is torn or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)["entry"]
    except (ValueError, KeyError, TypeError):
        return None
    return entry if isinstance(entry, dict) and log_line(entry) == line else None
