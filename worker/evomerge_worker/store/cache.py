"""The cache folder: what was pulled once is found again, and is there whole or not at all.

Any number of processes share it, of one pod or of many on one volume; see `locks` for what the volume must keep.
"""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from evomerge_worker.durable import sync_folder
from evomerge_worker.errors import StorageError
from evomerge_worker.store.locks import alone, share, unshare
from evomerge_worker.store.room import evict, reserve
from evomerge_worker.store.stamp import Stamper, stamp_path, whole

_SCRATCH = "scratch-"
Arrived = Callable[[Path, int], None]
Fill = Callable[[Path, Arrived], None]


def default_cache() -> Path:
    """`$EVOMERGE_CACHE`, or else `~/.cache/evomerge`."""
    chosen = os.environ.get("EVOMERGE_CACHE")
    return Path(chosen).absolute() if chosen else Path.home() / ".cache" / "evomerge"


def cached_folder(root: Path, key: str, size: Callable[[], int], fill: Fill) -> Path:
    """The folder `key` (64 hex digits) of the cache, in use by this process for as long as it lives.

    Where it is missing or damaged, room is made for its `size()` bytes and `fill` writes the files into a folder that
    is then renamed. That folder holds what an earlier `fill` of this key had written when it was interrupted; `fill`
    may go on from there, with notes of its own whose names begin with a dot. It may tell how much of a file has
    arrived, which is then hashed while the rest comes. Of many processes that ask at once, one fills and the others
    wait for it; a process that is killed leaves nothing that counts.

    Raises:
        StorageError: the cache cannot be written, is full, or the disk failed.
    """
    folder, part = root / key, root / f"{key}.part"
    with _disk_errors_explained(root):
        root.mkdir(parents=True, exist_ok=True)
        share(root / f"{key}.use")  # from here on nobody evicts it
        if not whole(folder):
            with alone(root / f"{key}.lock"):
                if not whole(folder):  # else somebody else has just filled it
                    _discard(folder)
                    reserve(root, key, size())
                    with Stamper() as stamper:
                        fill(part, stamper.arrived)
                        stamper.write(part, folder)
                    _drop_notes(part)
                    part.rename(folder)
                    sync_folder(root)
        os.utime(stamp_path(folder))  # what was used longest ago is evicted first
    return folder


@contextmanager
def scratch_folder(root: Path, size: int) -> Iterator[Path]:
    """An empty folder on the cache's volume with room for `size` bytes; gone after the block.

    Raises:
        StorageError: there is no room, or the cache cannot be written.
    """
    key = f"{_SCRATCH}{secrets.token_hex(8)}"
    folder = root / f"{key}.part"
    with _disk_errors_explained(root):
        root.mkdir(parents=True, exist_ok=True)
        for left_behind in root.glob(f"{_SCRATCH}*.part"):  # by a process that was killed
            evict(root, left_behind.name.removesuffix(".part"))
        share(root / f"{key}.use")
        reserve(root, key, size)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for end in ("use", "lock"):  # nobody else knows them
            (root / f"{key}.{end}").unlink(missing_ok=True)
        unshare(root / f"{key}.use")


def _discard(folder: Path) -> None:
    """Take away a folder that is damaged: processes that have mapped it keep what they see."""
    stamp_path(folder).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def _drop_notes(part: Path) -> None:
    for note in part.glob(".*"):
        if note.is_dir():
            shutil.rmtree(note)
        else:
            note.unlink()


@contextmanager
def _disk_errors_explained(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = "see that EVOMERGE_CACHE names a folder that can be written, with room for the models"
        raise StorageError.at("cache", f"the cache {root} cannot be written ({error}); {advice}") from error
