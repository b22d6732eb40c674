"""Statistics of pairs of tensors: found once, and kept beside the weights for those who come after.

What is kept of two models lies in the cache, a folder for each kind: all tensors that both have, under a key of the
digests of both. The first process that asks finds them out, alone; others wait for it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from threading import Lock

import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from evomerge_contract.base import digest_of
from evomerge_worker.errors import StorageError
from evomerge_worker.merge.method import Find, Known, Source, Statistic
from evomerge_worker.merge.threads import pool
from evomerge_worker.shards import Checkpoint
from evomerge_worker.store.cache import Arrived, cached_folder
from evomerge_worker.store.stamp import intact, stamp_path

_VERSION = 2  # of what is written: another number is another key
_FILE = "statistics.safetensors"
_HEADER_BYTES = 1 << 20
_USUAL = {torch.float32, torch.bfloat16, torch.float16}
_WORTH_KEEPING = 1 << 22
"""Elements of a model below which finding out takes no longer than looking up."""


class Statistics:
    """What is known of each pair of a source's tensor and the base's.

    With a `cache` it is kept there for all sources whose digests are known.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache
        self._pairs: dict[tuple[Checkpoint, Checkpoint], _Pair] = {}

    def of(self, source: Checkpoint, base: Checkpoint, tensor: str, threads: int) -> Known:
        """What is known of the source's tensors and the tensor of the base, found on so many threads."""
        pair = self._pairs.setdefault((source, base), _Pair(source, base, self._cache))
        return partial(pair.statistic, tensor, threads)


@dataclass(frozen=True)
class _Pair:
    """What is known of the tensors of two models: by kind, then by the names of both."""

    source: Checkpoint
    base: Checkpoint
    cache: Path | None
    found: dict[str, dict[tuple[str, str], Statistic]] = field(default_factory=dict)
    alone: Lock = field(default_factory=Lock)

    def statistic(self, base_name: str, threads: int, kind: str, find: Find, source: Source, base: Tensor) -> Statistic:
        if kind not in self.found:
            with self.alone:
                if kind not in self.found:
                    self.found[kind] = self._kept(kind, find, source, base, threads)
        known, names = self.found[kind], (source.name, base_name)
        if names not in known:
            known[names] = find(source.tensor, base, source.draws)
        return known[names]

    def _kept(
        self, kind: str, find: Find, like: Source, base: Tensor, threads: int
    ) -> dict[tuple[str, str], Statistic]:
        """Those of all tensors that both have, from the cache; none if they are not kept there."""
        if self.cache is None or self.source.digest is None or self.base.digest is None:
            return {}
        shared = [name for name in self.source.names if name in self.base and self._alike(name)]
        if sum(math.prod(self.base.shape(name)) for name in shared) < _WORTH_KEEPING:
            return {}

        def one(name: str) -> Statistic:
            tensor, origin = (model.tensor(name).to(base.device) for model in (self.source, self.base))
            return find(tensor, origin, like.drawing.of(name))

        @cache
        def all_of_them() -> dict[str, Statistic]:
            with pool(threads) as workers:
                return dict(zip(shared, workers.map(one, shared), strict=True))

        key = digest_of([_VERSION, kind, base.device.type, self.source.digest, self.base.digest])
        kept = _looked_up(self.cache, key.removeprefix("sha256:"), all_of_them)
        return {(name, name): statistic for name, statistic in kept.items()}

    def _alike(self, name: str) -> bool:
        """Whether a tensor has one shape in both models, and usual dtypes."""
        usual = {self.source.dtype(name), self.base.dtype(name)} <= _USUAL
        return usual and self.source.shape(name) == self.base.shape(name)


def _looked_up(root: Path, key: str, find: Callable[[], dict[str, Statistic]]) -> dict[str, Statistic]:
    """What the cache holds under `key`, byte for byte as it was written; `find` says what that is to be."""

    def size() -> int:
        return _HEADER_BYTES + sum(statistic.nbytes for statistic in find().values())

    def fill(folder: Path, _: Arrived) -> None:
        save_file(find(), folder / _FILE)

    try:
        for _ in range(2):
            folder = cached_folder(root, key, size, fill)
            if intact(folder / _FILE):
                return load_file(folder / _FILE)
            stamp_path(folder).unlink(missing_ok=True)  # so that it is found out anew
    except (StorageError, OSError):  # no room, or evicted or damaged at this moment: no reason to fail
        pass
    return find()
