"""Room in the cache: what was used longest ago goes first, what is in use never.

A cache entry is a key and what belongs to it: the folder KEY, its stamp, KEY.part while it is being pulled, KEY.lock
(held by whoever fills it; its text is the bytes of the entry) and KEY.use (shared by all who read it). The two lock
files stay when the rest goes: a lock on a file that has been replaced would keep nobody out.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from evomerge_worker.errors import StorageError
from evomerge_worker.store.locks import alone, alone_if_free
from evomerge_worker.store.stamp import stamp_path

LIMIT = "EVOMERGE_CACHE_BYTES"


class _Entry(NamedTuple):
    key: str
    bytes: int
    used: float  # seconds since 1970


def reserve(root: Path, key: str, needed: int) -> None:
    """Make room for the `needed` bytes of the entry `key`, whose lock and use the caller holds.

    The limit is that of EVOMERGE_CACHE_BYTES, and what the volume has free.

    Raises:
        StorageError: what is in use leaves no room for it.
        OSError: the cache cannot be written.
    """
    with alone(root / ".room"):
        limit = _limit()
        others = sorted(_entries(root, but=key), key=lambda entry: entry.used)
        total = sum(entry.bytes for entry in others)
        free = shutil.disk_usage(root).free
        possible = needed <= free + total and (limit is None or needed <= limit)
        for entry in others if possible else []:
            if _fits(root, key, needed, total, limit):
                break
            if evict(root, entry.key):
                total -= entry.bytes
        if not _fits(root, key, needed, total, limit):
            raise StorageError.at("cache", _refusal(root, needed, total, limit))
        (root / f"{key}.lock").write_text(str(needed))
        (root / f"{key}.part").mkdir(exist_ok=True)


def evict(root: Path, key: str) -> bool:
    """Remove an entry, unless somebody uses it."""
    with alone_if_free(root / f"{key}.use") as free:
        if free:
            stamp_path(root / key).unlink(missing_ok=True)  # first: without it the folder does not count
            for folder in (root / key, root / f"{key}.part"):
                shutil.rmtree(folder, ignore_errors=True)
        return free


def _entries(root: Path, but: str) -> Iterator[_Entry]:
    """Every entry that takes room."""
    for lock in root.glob("*.lock"):
        key = lock.name.removesuffix(".lock")
        stamped = stamp_path(root / key)
        try:
            if key != but and ((root / key).exists() or (root / f"{key}.part").exists()):
                used = (stamped if stamped.exists() else lock).stat().st_mtime
                yield _Entry(key, int(lock.read_text() or "0"), used)
        except (OSError, ValueError):
            continue


def _fits(root: Path, key: str, needed: int, total: int, limit: int | None) -> bool:
    if limit is not None and total + needed > limit:
        return False
    part = root / f"{key}.part"
    there = sum(f.stat().st_blocks * 512 for f in part.rglob("*") if f.is_file()) if part.exists() else 0
    return needed - there <= shutil.disk_usage(root).free


def _limit() -> int | None:
    text = os.environ.get(LIMIT)
    if not text:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise StorageError.at("cache", f"{LIMIT} is {text!r}; it must be a whole number of bytes") from error


def _refusal(root: Path, needed: int, total: int, limit: int | None) -> str:
    use = f"{total:,} bytes of it are in use and {needed:,} more are needed"
    if limit is not None and total + needed > limit:
        return f"the cache {root} may hold {limit:,} bytes ({LIMIT}); {use}; give it more room"
    free = shutil.disk_usage(root).free
    return f"the volume of the cache {root} has {free:,} bytes free, and {needed:,} are needed; give it more room"
