"""The stamp beside a cached folder: what its files were, byte for byte, when they were pulled.

It is written once every file has reached the disk and has been hashed. A session that finds a file with the size and
the modification time of the stamp takes the stamp's SHA-256 for the file's, and does not read gigabytes again. That
trusts that whoever changes a file in the cache changes one of the two, and that the disk gives back what it took. A
file that differs in either makes the whole folder count as damaged, and it is pulled anew.
"""

import hashlib
import json
import os
import re
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Self

from evomerge_worker.durable import write_durably

_THREADS = min(16, 2 * (os.cpu_count() or 1))
_CHUNK_BYTES = 1 << 18
_KEY = re.compile("[0-9a-f]{64}")


class Seen(NamedTuple):
    """A file as it was when it was stamped: size in bytes, modification time in ns, SHA-256 in hex."""

    size: int
    time: int
    sha256: str


def stamp_path(folder: Path) -> Path:
    """Where the stamp of a cached folder lies."""
    return folder.with_name(f"{folder.name}.stamp")


class Stamper:
    """Makes the stamp of a folder while its files still come: what has come is hashed and brought to the disk.

    Names that begin with a dot do not count.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS)  # hashing and waiting for the disk let other threads run
        self._files: dict[Path, _Growing] = {}
        self._begun: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def arrived(self, path: Path, size: int) -> None:
        """The first `size` bytes of a file will not be written to any more. Any thread may tell."""
        file = self._files.setdefault(path, _Growing(path))
        self._begun.append(self._threads.submit(file.hash_up_to, size))
        if size == path.stat().st_size:  # not before: pages on their way to the disk hold up those who write
            self._begun.append(self._threads.submit(file.sync))

    def write(self, folder: Path, to: Path) -> None:
        """Write the stamp of `folder`, all of whose files are whole, for it as the cached folder `to`."""
        tops = [path for path in folder.iterdir() if path.name[0] != "."]
        files = sorted(f for top in tops for f in ([top] if top.is_file() else top.rglob("*")) if f.is_file())
        for path in files:
            self.arrived(path, path.stat().st_size)
        for done in self._begun:
            done.result()
        seen = {path.relative_to(folder).as_posix(): self._files[path].seen() for path in files}
        write_durably(stamp_path(to), json.dumps(seen).encode())


class _Growing:
    """A file that comes, hashed as far as it is there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._alone = threading.Lock()
        self._hash = hashlib.sha256()
        self._position = 0

    def hash_up_to(self, size: int) -> None:
        buffer = memoryview(bytearray(_CHUNK_BYTES))  # one for all reads: fresh memory costs as much as hashing it
        with self._alone, self._path.open("rb", buffering=0) as file:
            file.seek(self._position)
            while self._position < size:
                got = file.readinto(buffer[: size - self._position])
                if not got:
                    raise OSError(f"{self._path} ends after {self._position} bytes of {size}")
                self._hash.update(buffer[:got])
                self._position += got

    def sync(self) -> None:
        with self._path.open("rb") as file:
            os.fsync(file.fileno())

    def seen(self) -> Seen:
        found = self._path.stat()
        return Seen(found.st_size, found.st_mtime_ns, self._hash.hexdigest())


def whole(folder: Path) -> bool:
    """Whether the files of a cached folder are all there and are those of its stamp, going by size and time."""
    seen = _read(folder)
    return seen is not None and all(_same(folder / name, was) for name, was in seen.items())


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hex: its stamp's where it lies in the cache unchanged, else read and hashed."""
    was = (_read(path.parent) or {}).get(path.name)
    return was.sha256 if was is not None and _same(path, was) else _hash(path)


def intact(path: Path) -> bool:
    """Whether a file in the cache has the content of its stamp, byte for byte."""
    was = (_read(path.parent) or {}).get(path.name)
    return was is not None and path.stat().st_size == was.size and _hash(path) == was.sha256


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _same(path: Path, was: Seen) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (was.size, was.time)


def _read(folder: Path) -> dict[str, Seen] | None:
    if not _KEY.fullmatch(folder.name):
        return None
    try:
        return {name: Seen(*seen) for name, seen in json.loads(stamp_path(folder).read_bytes()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return None
