"""The cache folder: what was downloaded once is found again, and is there whole or not at all."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from evomerge_worker.errors import InputError, StorageError

_CANNOT_WRITE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR}


def default_cache() -> Path:
    """`$EVOMERGE_CACHE`, or else `~/.cache/evomerge`."""
    chosen = os.environ.get("EVOMERGE_CACHE")
    return Path(chosen).absolute() if chosen else Path.home() / ".cache" / "evomerge"


def cached_folder(root: Path, key: str, sizes: dict[str, int], fill: Callable[[Path], None]) -> Path:
    """The folder `key` of the cache, which holds files of the given names and sizes in bytes.

    Where it is missing or damaged, `fill` writes the files into an empty folder that is then renamed. Of many
    processes that ask at once, one fills and the others wait for it; a process that is killed leaves nothing that
    counts.

    Raises:
        InputError: the cache cannot be written at all.
        StorageError: the disk failed or is full.
    """
    folder, part = root / key, root / f"{key}.part"
    if _complete(folder, sizes):
        return folder
    with _disk_errors_explained(root):
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{key}.lock"):
            if _complete(folder, sizes):
                return folder
            for leftover in (part, folder):
                shutil.rmtree(leftover, ignore_errors=True)
            part.mkdir()
            fill(part)
            part.rename(folder)
    return folder


def _complete(folder: Path, sizes: dict[str, int]) -> bool:
    try:
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except OSError:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among all processes of this machine; the system lifts the lock of one that dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _disk_errors_explained(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _CANNOT_WRITE:
            advice = "set EVOMERGE_CACHE to a folder that can be written"
            raise InputError.at("EVOMERGE_CACHE", f"the cache {root} cannot be written ({error}); {advice}") from error
        raise StorageError(f"the cache {root} could not be written: {error}") from error
