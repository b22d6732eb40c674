"""What a model or data set is, whatever it is called and wherever it lies: the digest of its files, and its keeping.

Nothing here needs torch.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

from safetensors import SafetensorError, safe_open

from evomerge_contract.base import digest_of
from evomerge_contract.problems import in_words
from evomerge_contract.task import Source
from evomerge_worker.errors import InputError, StorageError, where_of
from evomerge_worker.store.companions import MADE_OF
from evomerge_worker.store.index import shard_files
from evomerge_worker.store.stamp import sha256_of, stamp_path
from evomerge_worker.store.store import Store
from evomerge_worker.store.wanted import deciding

CHANGED = "is not what it was when the run was prepared; restore it, or start a new run"


def content_digest(folder: Path, *, code: bool) -> str:
    """`sha256:<hex>` over name and SHA-256 of every file of a checkpoint that changes what it does.

    Those are the weights' shards, config, generation config, tokenizer and chat template, and with `code` the Python
    files; nothing else that goes with the weights, such as a processor's settings: runs begun before those travelled
    have pinned a digest without them. Of a model in the cache that was made from a model and an adapter, they are those
    of both. About 1.7 GB/s a core, or nothing for files in the cache, which were hashed when they were pulled.

    Raises:
        OSError: a shard that the index names is missing.
    """
    if stamp_path(folder).exists() and (folder / MADE_OF).exists():  # what is in the cache and was made by us
        return digest_of(json.loads((folder / MADE_OF).read_bytes()))
    shards, _, _ = shard_files(folder)
    deciders = deciding((p.name for p in folder.iterdir()), code=code)
    others = [name for name in deciders if not name.endswith(".safetensors")]
    names = sorted({*shards, *others})
    with ThreadPoolExecutor(min(len(names), os.cpu_count() or 1)) as threads:  # hashing lets other threads run
        digests = threads.map(lambda name: sha256_of(folder / name), names)
        return digest_of(dict(zip(names, digests, strict=True)))


def pinned_model(source: Source, store: Store, *, code: bool) -> Path:
    """The local folder of a source, which is what its digest says, if it has one.

    Raises:
        InputError, StorageError: as `Store.model` does.
        StorageError: it is something else now.
    """
    where = where_of(source.name)
    if source.digest is None:
        return store.model(source.uri, where=where)
    with once_right():
        folder = store.model(source.uri, where=where)
    if _digest_if_whole(folder, code) != source.digest:
        raise StorageError.at(where, f"{source.uri} {CHANGED}")
    return folder


def pinned_file(uri: str, digest: str | None, store: Store, where: str) -> tuple[Path, str]:
    """The local path of a data set and its digest, which is `digest` unless that is None. Raises as `pinned_model`."""
    with nullcontext() if digest is None else once_right():
        path = store.file(uri, where=where)
    found = f"sha256:{sha256_of(path)}"
    if digest is not None and found != digest:
        raise StorageError.at(where, f"{uri} {CHANGED}")
    return path, found


def check_arrived(uri: str, folder: Path, where: str) -> None:
    """Refuse a model on a server with shards that are missing or torn: an upload may still be on its way.

    Raises:
        StorageError: it is so.
    """
    if uri.startswith("file:"):
        return  # nobody waits for these: opening the checkpoint tells all that is wrong with it
    for name in shard_files(folder)[0]:
        try:
            safe_open(folder / name, framework="np")
        except (SafetensorError, OSError) as error:
            missing = isinstance(error, FileNotFoundError)
            reason = "is missing" if missing else f"is truncated or no safetensors file ({error})"
            raise StorageError.at(where, f"{uri}: {name} {reason}; put it there again") from error


@contextmanager
def once_right() -> Iterator[None]:
    """What was right when it was prepared and is wrong now has changed since: the manifest cannot."""
    try:
        yield
    except InputError as error:
        problems = [p.model_copy(update={"message": f"{p.message}; it {CHANGED}"}) for p in error.problems]
        raise StorageError(in_words(problems), *problems) from error


def _digest_if_whole(folder: Path, code: bool) -> str | None:
    try:
        return content_digest(folder, code=code)
    except (OSError, ValueError):  # a shard is missing, or there are none
        return None
