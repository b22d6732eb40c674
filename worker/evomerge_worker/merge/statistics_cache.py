"""Statistics of pairs of tensors: found once, and kept beside the weights for those who come after.

What is kept of two models lies in the cache, a folder for each kind: all tensors that both have, under a key of the
digests of both. The first process that asks finds them out, alone; others wait for it. They are found on the CPU, so
that they are the same whatever device the tensors are merged on. They are mapped, as weights are, and take no memory of
their own. One that is not smaller than its tensor is kept for small models only, in memory.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from evomerge_contract.base import digest_of
from evomerge_worker.errors import StorageError
from evomerge_worker.merge.method import Find, InputTensor, Memo, Statistic
from evomerge_worker.merge.threads import pool
from evomerge_worker.shards import Checkpoint
from evomerge_worker.store.cache import Arrived, cached_folder
from evomerge_worker.store.locks import unshare
from evomerge_worker.store.stamp import intact, stamp_path

_VERSION = 2  # of what is written: another number is another key
_FILE = "statistics.safetensors"
_ENTRY_BYTES = 256  # at most, of a tensor in a file's header, besides its name
_USUAL = {torch.float32, torch.bfloat16, torch.float16}
_WORTH_KEEPING = 1 << 22
"""Elements of a model below which finding out takes no longer than looking up, and all fits into memory."""


class Statistics:
    """What is known of each pair of a source's tensor and the base's.

    With a `cache` it is kept there for all sources whose digests are known.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache
        self._pairs: dict[tuple[Checkpoint, Checkpoint], _Pair] = {}

    def of(self, source: Checkpoint, base: Checkpoint, tensor: str, threads: int) -> Memo:
        """What is known of the source's tensors and the tensor of the base, found on so many threads."""
        models = (source, base)  # asked for with every tensor of every candidate
        pair = self._pairs.get(models) or self._pairs.setdefault(models, _Pair(*models, self._cache))
        return partial(pair.statistic, tensor, threads)


@dataclass(frozen=True)
class _Pair:
    """What is known of the tensors of two models: by kind, then by the names of both."""

    source: Checkpoint
    base: Checkpoint
    cache: Path | None
    found: dict[str, dict[tuple[str, str], Statistic]] = field(default_factory=dict)
    alone: Lock = field(default_factory=Lock)

    def statistic(self, base_name: str, threads: int, kind: str, find: Find, source: InputTensor) -> Statistic:
        if kind not in self.found:
            with self.alone:
                if kind not in self.found:
                    self._forget_like(kind)
                    self.found[kind] = self._kept(kind, find, source, threads)
        known, names = self.found[kind], (source.name, base_name)
        if names in known:
            return known[names]
        tensor = source._replace(tensor=self.source.tensor(source.name))
        statistic = find(tensor, self.base.tensor(base_name))
        if self._small or _smaller(statistic, source.tensor):
            known[names] = statistic
        return statistic

    def _forget_like(self, kind: str) -> None:
        """Let go of the same under other seeds: their number has no bound, and one is merged with at a time."""
        for other in [k for k in self.found if k.partition(",")[0] == kind.partition(",")[0]]:
            del self.found[other]
            if self.cache is not None:
                unshare(self.cache / f"{self._key(other)}.use")

    def _kept(self, kind: str, find: Find, like: InputTensor, threads: int) -> dict[tuple[str, str], Statistic]:
        """Those of all tensors that both have, from the cache; none if they are not kept there.

        They are of the tensors in the files: of no use for those that have other rows here.
        """
        source, base = self._files
        if self.cache is None or source.digest is None or base.digest is None or self._small:
            return {}

        def one(name: str) -> Statistic | None:
            tensor = source.tensor(name)
            statistic = find(like._replace(tensor=tensor, name=name), base.tensor(name))
            return statistic if _smaller(statistic, tensor) else None

        @cache
        def all_of_them() -> dict[str, Statistic]:
            with pool(threads) as workers:
                found = zip(self._shared, workers.map(one, self._shared), strict=True)
                return {name: statistic for name, statistic in found if statistic is not None}

        kept = _looked_up(self.cache, self._key(kind), all_of_them)
        made = self.source.made | self.base.made
        return {(name, name): statistic for name, statistic in kept.items() if name not in made}

    @cached_property
    def _files(self) -> tuple[Checkpoint, Checkpoint]:
        """InputTensor and base as they lie in their files."""
        return self.source.origin, self.base.origin

    @cached_property
    def _shared(self) -> list[str]:
        """The tensors that both models have, alike."""
        source, base = self._files
        return [name for name in source.names if name in base and self._alike(name)]

    @cached_property
    def _small(self) -> bool:
        return sum(math.prod(self._files[1].shape(name)) for name in self._shared) < _WORTH_KEEPING

    def _key(self, kind: str) -> str:
        """What it is kept under in the cache."""
        return digest_of([_VERSION, kind, *(model.digest for model in self._files)]).removeprefix("sha256:")

    def _alike(self, name: str) -> bool:
        """Whether a tensor has one shape in both models, and usual dtypes."""
        source, base = self._files
        return {source.dtype(name), base.dtype(name)} <= _USUAL and source.shape(name) == base.shape(name)


def _looked_up(root: Path, key: str, find: Callable[[], dict[str, Statistic]]) -> dict[str, Statistic]:
    """What the cache holds under `key`, byte for byte as it was written; `find` says what that is to be."""

    def size() -> int:
        return sum(len(name) + _ENTRY_BYTES + statistic.nbytes for name, statistic in find().items()) + _ENTRY_BYTES

    def fill(folder: Path, _: Arrived) -> None:
        save_file(find(), folder / _FILE)

    try:
        for _ in range(2):
            folder = cached_folder(root, key, size, fill)
            if intact(folder / _FILE):
                return _mapped(folder / _FILE)
            stamp_path(folder).unlink(missing_ok=True)  # so that it is found out anew
    except (StorageError, OSError):  # no room, or evicted or damaged at this moment: no reason to fail
        pass
    return find()


def _mapped(path: Path) -> dict[str, Statistic]:
    """The arrays of a file, as views of it: by torch, since safetensors copies what it gives to NumPy."""
    file: Any = safe_open(path, framework="pt")
    names: list[str] = file.keys()
    return {name: file.get_tensor(name).numpy() for name in names}


def _smaller(statistic: Statistic, tensor: Tensor) -> bool:
    return statistic.nbytes < tensor.nbytes
