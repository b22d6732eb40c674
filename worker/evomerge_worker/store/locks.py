"""Locks between the processes that share a cache; the system lifts those of a process that dies.

Assumed of a volume that several machines share: flock reaches all of them (so it is on NFS 4 and CephFS, not on NFS
mounted with `nolock` or `local_lock`), and a rename is seen whole or not at all.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_held: dict[Path, BinaryIO] = {}


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Alone among all processes until the block ends; waits for those that have the lock, or share it."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def alone_if_free(path: Path) -> Iterator[bool]:
    """Whether nobody has the lock or shares it, and if so it is ours until the block ends."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def share(path: Path) -> None:
    """Share the lock with others for as long as this process lives."""
    if path in _held:
        return
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
    except BaseException:
        file.close()
        raise
    _held[path] = file


def unshare(path: Path) -> None:
    """Give a shared lock back before the process ends."""
    if file := _held.pop(path, None):
        file.close()
