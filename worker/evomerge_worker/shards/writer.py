"""Writing a checkpoint's weights: shards and index, tensor after tensor as they come.

The safetensors library wants a whole shard in memory before it writes its first byte; so that merging and writing go on
at once, the file is put together here: a header's length in 8 bytes, the header (JSON, padded to 8 bytes), the data.
"""

import errno
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor

from evomerge_worker.pages import huge_pages
from evomerge_worker.shards.dtypes import BUFFERS, FLOATS
from evomerge_worker.store.index import INDEX, SINGLE

_CODES = {dtype: code for code, dtype in (FLOATS | BUFFERS).items()}
_PIECE = 1 << 24
"""Bytes handed to the system at a time, or a full disk would be noticed late."""
_BLOCK = 4096
"""What goes past the page cache begins and ends at multiples of it, in the file and in memory."""
_OTHERWISE = (errno.EINVAL, errno.EOPNOTSUPP)
"""How a file system says that it does not write so: not at all, or only larger blocks."""


class Entry(NamedTuple):
    """A tensor that is to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.dtype.itemsize * math.prod(self.shape)


def write_checkpoint(
    out: Path,
    entries: Sequence[Entry],
    tensors: Iterable[tuple[str, Tensor]],
    max_shard_bytes: int,
    *,
    past_cache: bool = False,
) -> list[str]:
    """Write `tensors`, which are those of `entries` in their order, into the folder `out` as safetensors.

    `past_cache`: they need not be in the page cache afterwards, and may go past it.

    Returns the names of the files. A shard holds at most `max_shard_bytes` (one tensor at least); a second one brings
    an index. Every file is synced and gets its final name last, so that a folder is never half-written without it
    showing.

    Raises:
        OSError: the disk is full or failed.
    """
    shards, coming = _shards(entries, max_shard_bytes), iter(tensors)
    parts = [out / f".shard-{number}.partial" for number in range(len(shards))]
    for part, shard in zip(parts, shards, strict=True):
        _write(_File(part, past_cache=past_cache), shard, coming)
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for part, name in zip(parts, names, strict=True):
        part.replace(out / name)
    if count > 1:
        weight_map = {entry.name: file for file, shard in zip(names, shards, strict=True) for entry in shard}
        index = {"metadata": {"total_size": sum(entry.bytes for entry in entries)}, "weight_map": weight_map}
        (out / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True))
        sync(out / INDEX)
        names.append(INDEX)
    sync(out)
    return names


def _write(to: "_File", shard: Sequence[Entry], coming: Iterator[tuple[str, Tensor]]) -> None:
    """Write the next tensors of `coming`, which are those of `shard`. Wide dtypes go first, so that all are aligned."""
    inside = sorted(shard, key=lambda entry: -entry.dtype.itemsize)
    ends = [sum(entry.bytes for entry in inside[: i + 1]) for i in range(len(inside))]
    places = {entry.name: end - entry.bytes for entry, end in zip(inside, ends, strict=True)}
    header = {
        "__metadata__": {"format": "pt"},
        **{
            entry.name: {
                "dtype": _CODES[entry.dtype],
                "shape": list(entry.shape),
                "data_offsets": [places[entry.name], places[entry.name] + entry.bytes],
            }
            for entry in inside
        },
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _BLOCK)
    with to as file:
        file.write(len(text).to_bytes(8, "little") + text, 0)
        begin = 8 + len(text)
        for entry in shard:
            name, tensor = next(coming)
            if (name, tensor.dtype, tuple(tensor.shape)) != entry:
                raise ValueError(f"{name} came where {entry.name} was announced")
            file.write(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data, begin + places[name])
            del tensor  # its memory is needed for those that come
        file.sync()


class _File:
    """A new file that is written to by position."""

    def __init__(self, path: Path, *, past_cache: bool) -> None:
        self._blocks = huge_pages(_PIECE)[:_PIECE].numpy().data  # what goes past the page cache lies here, at blocks
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._direct: int | None = None  # the same, past the page cache
        if past_cache:
            with suppress(OSError, AttributeError):  # not here, or nowhere on this system
                self._direct = os.open(path, os.O_WRONLY | os.O_DIRECT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
        if self._direct is not None:
            os.close(self._direct)

    def write(self, data: bytes | memoryview, place: int) -> None:
        """Write all of `data`: the blocks inside it past the page cache, the rest through it."""
        data, first = memoryview(data), -place % _BLOCK
        last = first + (len(data) - first) // _BLOCK * _BLOCK
        if last <= first:
            self._through(data, place)
            return
        self._through(data[:first], place)
        for start in range(first, last, _PIECE):
            piece = data[start : min(start + _PIECE, last)]
            done = self._past(piece, place + start)
            self._through(piece[done:], place + start + done)
        self._through(data[last:], place + last)

    def _past(self, data: memoryview, place: int) -> int:
        """Write whole blocks past the page cache; how many bytes of `data` have been written."""
        if self._direct is None:
            return 0
        blocks = self._blocks[: len(data)]
        blocks[:] = data
        try:
            return os.pwrite(self._direct, blocks, place)
        except OSError as error:
            if error.errno not in _OTHERWISE:
                raise
            os.close(self._direct)
            self._direct = None
            return 0

    def _through(self, data: memoryview, place: int) -> None:
        while data:
            done = os.pwrite(self._file, data[:_PIECE], place)
            data, place = data[done:], place + done

    def sync(self) -> None:
        """Bring all of it to the disk."""
        os.fsync(self._file)


def sync(path: Path) -> None:
    """Bring a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _shards(entries: Sequence[Entry], max_bytes: int) -> list[list[Entry]]:
    """Cut `entries` into runs of at most `max_bytes`."""
    shards: list[list[Entry]] = []
    held = 0
    for entry in entries:
        if not shards or held + entry.bytes > max_bytes:
            shards.append([])
            held = 0
        shards[-1].append(entry)
        held += entry.bytes
    return shards
