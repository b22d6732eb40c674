"""The local folder of a source, its adapter merged in if it has one."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from torch import Tensor

from evomerge_contract.base import digest_of
from evomerge_contract.task import Source
from evomerge_worker.errors import InputError, StorageError, where_of
from evomerge_worker.merge.tokens import rowed, tokens_of
from evomerge_worker.shards import Checkpoint, Entry, write_checkpoint
from evomerge_worker.shards.adapter import Adapter, Change
from evomerge_worker.shards.config_parts import token_rows
from evomerge_worker.shards.tied import held_heads
from evomerge_worker.shards.tokenizer import load_tokenizer
from evomerge_worker.store import Store
from evomerge_worker.store.cache import Arrived, cached_folder
from evomerge_worker.store.companions import MADE_OF, companions, copy_files, matches, of_tokenizer, settings
from evomerge_worker.store.pinned import CHANGED, check_arrived, content_digest, once_right, pinned_model
from evomerge_worker.store.stamp import sha256_of
from evomerge_worker.store.wanted import ADAPTER_CONFIG, ADAPTER_WEIGHTS

_VERSION = 2  # of what is made: another number is another key in the cache
_SHARD_BYTES = 1 << 30  # of the model that is written
_BESIDES_WEIGHTS = 64 << 20  # bytes of tokenizer and code
_WITH_TOKENS = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")  # without one, it is no tokenizer


def source_folder(source: Source, store: Store, *, code: bool) -> Path:
    """The local folder of a source, which is what its digest says, if it has one.

    A model with an adapter is made once, as an ordinary checkpoint in the cache, under a key of the digests of both.
    Of a store without weights the model comes as it is, after a look at whether the adapter fits it.

    Raises:
        InputError, StorageError: as `Store.model` does.
        InputError: the adapter does not fit the model, or is of another kind than LoRA: all reasons.
        StorageError: either of them is something else now.
    """
    if source.adapter is None:
        return pinned_model(source, store, code=code)
    parts = cache(lambda: _fetched(source, store, code))
    if not store.has_weights and not parts().tokenizer:
        return parts().model.folder
    if not store.has_weights:  # its tokens are to be seen, and they are the adapter's
        return source_folder(source, Store(store.storage, store.cache, trust_remote_code=code), code=code)
    made_of = cache(lambda: parts().made_of(code))  # reads all of a model that is not in the cache
    digest = source.digest or digest_of(made_of())

    def fill(folder: Path, _: Arrived) -> None:
        if digest_of(made_of()) != digest:
            raise StorageError.at(where_of(source.name), f"{source.uri} with its adapter {source.adapter} {CHANGED}")
        parts().write(folder, code)
        (folder / MADE_OF).write_text(json.dumps(made_of()))

    key = digest_of({"made": digest, "version": _VERSION}).removeprefix("sha256:")
    with nullcontext() if source.digest is None else once_right():
        return cached_folder(store.cache, key, lambda: parts().bytes, fill)


@dataclass(frozen=True)
class _Parts:
    """A model and an adapter that fits it: `changes` says what becomes of the model's tensors, by name.

    `tokenizer` are the files of the adapter's tokenizer, where it brings tokens.
    """

    model: Checkpoint
    adapter: Adapter
    tokenizer: Sequence[str]
    changes: Mapping[str, Change]
    left_out: Set[str]

    def made_of(self, code: bool) -> dict[str, str]:
        """The digests of both; where the adapter brings tokens, its tokenizer belongs to it."""
        names = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, *self.tokenizer)
        files = {name: sha256_of(self.adapter.folder / name) for name in names}
        return {"model": content_digest(self.model.folder, code=code), "adapter": digest_of(files)}

    @property
    def bytes(self) -> int:
        """About what the result takes on a disk."""
        return self.model.bytes + _BESIDES_WEIGHTS

    def write(self, folder: Path, code: bool) -> None:
        """Write the result to `folder`, where an earlier attempt may have left something."""
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        names = [name for name in self.model.names if name not in self.left_out]
        entries = [Entry(name, self.model.dtype(name), self.model.shape(name)) for name in names]
        write_checkpoint(folder, entries, self._tensors(names), _SHARD_BYTES)
        beside = companions(self.model.folder, code=code)
        if self.tokenizer:
            beside = [name for name in beside if not of_tokenizer(name)]
        copy_files(self.model.folder, folder, beside)
        copy_files(self.adapter.folder, folder, self.tokenizer)
        if self.model.made:
            (folder / "config.json").write_text(json.dumps(self.model.config, indent=2))
        else:
            copy_files(self.model.folder, folder, ["config.json"])

    def _tensors(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            weight = self.model.tensor(name)
            yield name, self.adapter.applied(self.changes[name], weight) if name in self.changes else weight


def _fetched(source: Source, store: Store, code: bool) -> _Parts:
    """The model and the adapter of a source, brought here and checked against each other."""
    where = where_of(source.name)
    folder = store.model(source.uri, where=where)
    check_arrived(source.uri, folder, where)
    adapter = Adapter.open(store.adapter(source.adapter or "", where=where), where)
    model = adapter.resized(Checkpoint.open(folder, source.name))
    changes = adapter.changes(model, where)
    tokenizer = _tokenizer(model, adapter, code)
    parts = _Parts(model, adapter, tokenizer, changes, set())
    if model.made and not tokenizer:
        message = (
            f"the adapter was trained with {token_rows(model.config)} rows of tokens, and no tokenizer is beside it"
        )
        raise InputError.at(where, f"{message} that tells which they are; put there the one that it was trained with")
    adapter.check_numbers(where)
    if not store.has_weights or not changes.keys() & {*model.layout.before, *model.layout.after}:
        return parts
    heads = held_heads(model)  # left out, they stay tied to embeddings that change
    for embeddings in {name for head in heads for name in model.copies[head]} - heads:
        changes = adapter.tied(changes, embeddings, heads, where)
    return _Parts(model, adapter, tokenizer, changes, heads)


def _tokenizer(model: Checkpoint, adapter: Adapter, code: bool) -> list[str]:
    """The files of the adapter's tokenizer, if it brings tokens: `model` has been resized for them, or had the rows."""
    files = [path.name for path in settings(adapter.folder, code=False) if of_tokenizer(path.name)]
    if model.made or not any(matches(name, _WITH_TOKENS) for name in files):
        return files if model.made else []
    own, its = (
        tokens_of(load_tokenizer(replace(model, folder=folder), trust_remote_code=code))
        for folder in (model.folder, adapter.folder)
    )
    return files if rowed(its, token_rows(model.config)).items() - own.items() else []
