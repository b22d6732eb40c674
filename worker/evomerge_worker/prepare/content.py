"""What a model is, whatever it is called and wherever it lies: the digest of its files."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from evomerge_contract.base import digest_of
from evomerge_worker.shards.index import shard_files
from evomerge_worker.store.wanted import wanted


def content_digest(folder: Path, *, code: bool) -> str:
    """`sha256:<hex>` over name and SHA-256 of every file of a checkpoint that changes what it does.

    Those are the weights' shards, config, generation config, tokenizer and chat template, and with `code` the Python
    files; never a README, or weights in formats that are not read. About 1.7 GB/s a core.
    """
    shards, _, _ = shard_files(folder)
    others = [
        name for name in wanted((p.name for p in folder.iterdir()), code=code) if not name.endswith(".safetensors")
    ]
    names = sorted({*shards, *others})
    with ThreadPoolExecutor(min(len(names), os.cpu_count() or 1)) as threads:  # hashing lets other threads run
        digests = threads.map(lambda name: _sha256(folder / name), names)
        return digest_of(dict(zip(names, digests, strict=True)))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
