"""Pulling objects by ranged reads, several files and several ranges of a file at once.

Every read carries the ETag that was listed, so that no file is pieced together from two versions. A range that has been
written is noted in a journal with its CRC-32; after a kill, the ranges whose bytes on disk still have it are kept.
Where the server knows an object's CRC-32, it is compared with that of the ranges put together.
"""

import base64
import os
import threading
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from botocore.exceptions import HTTPClientError, IncompleteReadError, ResponseStreamingError
from urllib3.exceptions import HTTPError

from evomerge_worker.errors import StorageError
from evomerge_worker.store.cache import Arrived
from evomerge_worker.store.crc import joined
from evomerge_worker.store.s3 import CONNECTIONS, Object, S3Client

RANGE_BYTES = 64 << 20
_CHUNK_BYTES = 2 << 20
"""A huge page: of a file written in aligned pieces of that size the page cache holds such pages, where the file system
has them, and whoever maps it has few to look up."""
_ATTEMPTS = 4
_JOURNAL = ".journal"


class _Range(NamedTuple):
    name: str
    offset: int
    size: int


class Location(NamedTuple):
    """Where objects lie, and the path that problems with them are reported at."""

    bucket: str
    prefix: str
    where: str

    def failed(self, name: str, reason: str) -> StorageError:
        """What is wrong with the object `name`."""
        return StorageError.at(self.where, f"s3://{self.bucket}/{self.prefix}{name} {reason}")


def pull(client: S3Client, location: Location, objects: Mapping[str, Object], folder: Path, arrived: Arrived) -> None:
    """Bring the objects at `location` by their names into `folder`, which may hold what an interrupted pull left there.

    `arrived` is told how much of a file is there, from its beginning.

    Raises:
        StorageError: an object changed meanwhile, or arrived damaged.
        BotoCoreError, ClientError: the server failed or refused.
        OSError: the disk did.
    """
    ranges = {name: _cut(name, found.size) for name, found in objects.items()}
    for name, found in objects.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("ab") as file:
            file.truncate(found.size)
    journal = _Journal(folder / _JOURNAL)
    crcs = journal.confirmed(folder, [r for parts in ranges.values() for r in parts])
    over = threading.Event()

    def fetch(wanted: _Range) -> None:
        if wanted in crcs or over.is_set():
            return
        crc = _fetch(client, location, objects[wanted.name], wanted, folder)
        journal.note(wanted, crc)
        crcs[wanted] = crc
        if there := list(takewhile(crcs.__contains__, ranges[wanted.name])):
            arrived(folder / wanted.name, there[-1].offset + there[-1].size)

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        try:
            _all(threads.submit(fetch, r) for parts in ranges.values() for r in parts)
        finally:
            over.set()  # after a failure, what has not begun stays undone
    for name, parts in ranges.items():
        expected = _known_crc(client, location, name) if len(parts) > 1 else None
        if expected is not None and joined((crcs[r], r.size) for r in parts) != expected:
            journal.forget()
            raise location.failed(name, "arrived damaged: its CRC-32 is not the server's; try again")


def _cut(name: str, size: int) -> list[_Range]:
    return [_Range(name, offset, min(RANGE_BYTES, size - offset)) for offset in range(0, size, RANGE_BYTES)]


def _all(futures: Iterable[Future[None]]) -> None:
    """Wait until all are done, or one has failed; raise what it raised."""
    done, _ = wait(list(futures), return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()


def _fetch(client: S3Client, location: Location, source: Object, wanted: _Range, folder: Path) -> int:
    """Write a range to its place; its CRC-32. A connection that breaks is taken up where it broke."""
    position, end, crc = wanted.offset, wanted.offset + wanted.size, 0
    key, whole = location.prefix + wanted.name, wanted.size == source.size
    target = os.open(folder / wanted.name, os.O_WRONLY)
    try:
        for attempt in range(1, _ATTEMPTS + 1):
            # Asked for an object as a whole, boto3 compares the server's checksum by itself.
            asked: dict[str, Any] = {} if whole and position == 0 else {"Range": f"bytes={position}-{end - 1}"}
            answer = client.get_object(Bucket=location.bucket, Key=key, IfMatch=source.etag, **asked)
            try:
                while chunk := answer["Body"].read(_CHUNK_BYTES):
                    if position + len(chunk) > end:
                        raise location.failed(wanted.name, "is longer than it was listed; try again")
                    os.pwrite(target, chunk, position)
                    crc = zlib.crc32(chunk, crc)
                    position += len(chunk)
                if position == end:
                    return crc
            except (HTTPClientError, IncompleteReadError, ResponseStreamingError, HTTPError) as error:
                if attempt == _ATTEMPTS:
                    raise location.failed(wanted.name, f"could not be read: {error}") from error
    finally:
        os.close(target)
    raise location.failed(wanted.name, "is shorter than it was listed; try again")


def _known_crc(client: S3Client, location: Location, name: str) -> int | None:
    """The CRC-32 of a whole object, where the server has it: of one put in parts it may know only the parts'."""
    found = client.head_object(Bucket=location.bucket, Key=location.prefix + name, ChecksumMode="ENABLED")
    text = found.get("ChecksumCRC32", "")
    return int.from_bytes(base64.b64decode(text)) if text and "-" not in text else None


class _Journal:
    """The ranges that have been written, a line each: CRC-32, offset, size, name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def note(self, done: _Range, crc: int) -> None:
        """A range has been written."""
        with self._lock, self._path.open("a") as file:
            file.write(f"{crc} {done.offset} {done.size} {done.name}\n")

    def confirmed(self, folder: Path, ranges: list[_Range]) -> dict[_Range, int]:
        """Those of `ranges` that are noted and whose bytes are as they were noted, with their CRC-32."""
        if not self._path.exists():
            return {}
        noted: dict[_Range, int] = {}
        for line in self._path.read_text().splitlines():
            crc, offset, size, name = [*line.split(" ", 3), "", "", ""][:4]
            if crc.isdecimal() and offset.isdecimal() and size.isdecimal():
                noted[_Range(name, int(offset), int(size))] = int(crc)
        known = [r for r in ranges if r in noted]
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            found = threads.map(lambda r: _crc_on_disk(folder, r), known)
            return {r: crc for r, crc in zip(known, found, strict=True) if crc == noted[r]}

    def forget(self) -> None:
        """Nothing that was written counts."""
        self._path.unlink(missing_ok=True)


def _crc_on_disk(folder: Path, wanted: _Range) -> int:
    crc, left = 0, wanted.size
    with (folder / wanted.name).open("rb") as file:
        file.seek(wanted.offset)
        while left and (chunk := file.read(min(_CHUNK_BYTES, left))):
            crc = zlib.crc32(chunk, crc)
            left -= len(chunk)
    return crc if not left else -1
