"""Digests of files."""

import hashlib
from pathlib import Path


def file_digest(path: Path) -> str:
    """`sha256:<hex>` of a file's content."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
