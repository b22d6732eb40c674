"""Writing a checkpoint's weights: shards and index, one shard in memory at a time."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from stat import S_IMODE

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from evomerge_worker.durable import READABLE
from evomerge_worker.errors import StorageError
from evomerge_worker.store.index import INDEX, SINGLE

_Named = tuple[str, Tensor]


def write_checkpoint(out: Path, tensors: Iterable[_Named], max_shard_bytes: int) -> list[str]:
    """Write `tensors` into the folder `out` as safetensors; return the names of the files.

    A shard holds at most `max_shard_bytes` (one tensor at least); a second one brings an index. Every file is synced
    and gets its final name last, so that a folder is never half-written without it showing.

    Raises:
        StorageError, OSError: the disk is full or failed.
    """
    sizes: list[dict[str, int]] = []
    parts: list[Path] = []
    for shard in _shards(tensors, max_shard_bytes):
        parts.append(out / f".shard-{len(parts)}.partial")
        _save(parts[-1], shard)
        sizes.append({name: tensor.nbytes for name, tensor in shard})
        sync(parts[-1])
        shard.clear()
    count = len(parts)
    names = [SINGLE] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for part, name in zip(parts, names, strict=True):
        part.replace(out / name)
    if count > 1:
        weight_map = {tensor: file for file, held in zip(names, sizes, strict=True) for tensor in held}
        index = {"metadata": {"total_size": sum(sum(s.values()) for s in sizes)}, "weight_map": weight_map}
        (out / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True))
        sync(out / INDEX)
        names.append(INDEX)
    sync(out)
    return names


def _save(part: Path, shard: list[_Named]) -> None:
    """Write one shard, readable as any file is: safetensors lets nobody but the owner read what it writes."""
    part.touch(READABLE)
    mode = S_IMODE(part.stat().st_mode)  # without what the umask takes away
    try:
        save_file({name: tensor.contiguous() for name, tensor in shard}, part, metadata={"format": "pt"})
    except SafetensorError as error:
        if "I/O error" in str(error):
            raise StorageError(f"{part.parent} could not be written: {error}") from error
        raise
    part.chmod(mode)


def sync(path: Path) -> None:
    """Bring a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _shards(tensors: Iterable[_Named], max_bytes: int) -> Iterator[list[_Named]]:
    """Cut `tensors` into runs of at most `max_bytes`. A consumer that clears the run it was given frees its memory."""
    shard: list[_Named] = []
    held = 0
    for name, tensor in tensors:
        if shard and held + tensor.nbytes > max_bytes:
            yield shard
            shard, held = [], 0
        shard.append((name, tensor))
        held += tensor.nbytes
    if shard:
        yield shard
