"""Writing a checkpoint's weights: shards and index, tensor after tensor as they come.

The safetensors library wants a whole shard in memory before it writes its first byte; so that merging and writing go on
at once, the file is put together here: a header's length in 8 bytes, the header (JSON, padded to 8 bytes), the data.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from evomerge_worker.shards.dtypes import BUFFERS, FLOATS
from evomerge_worker.store.index import INDEX, SINGLE

_CODES = {dtype: code for code, dtype in (FLOATS | BUFFERS).items()}
_PIECE = 1 << 24
"""Bytes handed to the system at a time, or a full disk would be noticed late."""
_WORTH_SYNCING = 1 << 27
"""At least so many bytes are brought to the disk at a time; left to itself, the system may begin with the last one."""


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
    out: Path, entries: Sequence[Entry], tensors: Iterable[tuple[str, Tensor]], max_shard_bytes: int
) -> list[str]:
    """Write `tensors`, which are those of `entries` in their order, into the folder `out` as safetensors.

    Returns the names of the files. A shard holds at most `max_shard_bytes` (one tensor at least); a second one brings
    an index. Every file is synced and gets its final name last, so that a folder is never half-written without it
    showing.

    Raises:
        OSError: the disk is full or failed.
    """
    shards, coming = _shards(entries, max_shard_bytes), iter(tensors)
    parts = [out / f".shard-{number}.partial" for number in range(len(shards))]
    for part, shard in zip(parts, shards, strict=True):
        _write(part, shard, coming)
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


def _write(part: Path, shard: Sequence[Entry], coming: Iterator[tuple[str, Tensor]]) -> None:
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
    text += b" " * (-len(text) % 8)
    with part.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as helper:
        file.write(len(text).to_bytes(8, "little") + text)
        begin, waiting = file.tell(), 0
        syncing: Future[None] | None = None
        for entry in shard:
            name, tensor = next(coming)
            if (name, tensor.dtype, tuple(tensor.shape)) != entry:
                raise ValueError(f"{name} came where {entry.name} was announced")
            file.seek(begin + places[name])
            _put(file.fileno(), tensor)
            del tensor  # its memory is needed for those that come
            waiting += entry.bytes
            if waiting >= _WORTH_SYNCING and (syncing is None or syncing.done()):
                if syncing is not None:
                    syncing.result()
                syncing, waiting = helper.submit(os.fsync, file.fileno()), 0  # while the next ones are merged
        if syncing is not None:
            syncing.result()
        os.fsync(file.fileno())


def _put(file: int, tensor: Tensor) -> None:
    data = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    while data:
        data = data[os.write(file, data[:_PIECE]) :]


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
