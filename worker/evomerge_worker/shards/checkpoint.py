"""Reading a Hugging Face checkpoint folder: safetensors shards by mmap, without a copy."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from evomerge_contract.report import Layout, Problem
from evomerge_worker.errors import InputError, where_of
from evomerge_worker.shards import quantised
from evomerge_worker.shards.config_parts import with_token_rows
from evomerge_worker.shards.headers import Entry, Headers, Shard, read_header
from evomerge_worker.shards.layout import layout_of, stands_apart
from evomerge_worker.store.index import POINTER, is_pointer, shard_files
from evomerge_worker.store.wanted import BEHIND_ITS_MODEL


@dataclass(frozen=True)
class _Made:
    """A tensor that is computed when it is first asked for."""

    make: Callable[[], torch.Tensor]

    def get_tensor(self, name: str) -> torch.Tensor:
        return self.make()


class Renamed(NamedTuple):
    """A tensor under another name, made `of` some of those in the files."""

    name: str
    shape: tuple[int, ...]
    of: list[str]
    make: Callable[[], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint folder, opened: nothing but the shards' headers has been read.

    `config` is its config.json. Tensors are views of the files, mapped privately: they are not to be written to (such a
    write would never reach the file, but every later reader in this process would see it).
    """

    folder: Path
    name: str
    config: dict[str, Any]
    _entries: dict[str, Entry]
    _views: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    digest: str | None = None
    """Which content this is, where that is known and the tensors are its own."""
    shell: Any = None
    """What keeps `folder` alive where it holds everything but the weights; None where it holds them too."""
    _origin: "Checkpoint | None" = field(default=None, repr=False)
    """The one as it lies in its files, where rows have been rearranged."""

    _files: "Checkpoint | None" = field(default=None, repr=False)
    """The one as it lies in its files, where tensors have been renamed."""

    @classmethod
    def open(cls, folder: Path, name: str, digest: str | None = None) -> "Checkpoint":
        """Open `folder`; `name` is what recipes call it, `digest` that of its content, if it is known.

        Raises:
            InputError: all that `look` finds wrong with it.
        """
        checkpoint, problems = cls.look(folder, name)
        if checkpoint is None or problems:
            raise InputError(*problems)
        return replace(checkpoint, digest=digest)

    @classmethod
    def look(cls, folder: Path, name: str) -> "tuple[Checkpoint | None, list[Problem]]":
        """Open `folder` as far as it goes, with all that is wrong with it.

        That is: no config, no safetensors (pickles are refused), an index that is broken or names files outside the
        folder, shards missing or truncated, quantised weights, types that cannot be merged. A checkpoint comes out
        wherever its tensors' names and shapes can be compared with another's.
        """
        config, problems = _read_config(folder)
        if (folder / "adapter_config.json").exists():
            problems.append(f"the folder holds an adapter (adapter_config.json); {BEHIND_ITS_MODEL}")
        files, expected, found = shard_files(folder)
        problems += found
        headers = Headers({}, [], whole=bool(files) and not found)
        for file in files:
            try:
                shard: Shard = safe_open(folder / file, framework="pt")
            except FileNotFoundError:
                problems.append(f"{file} is missing; fetch it again")
                headers.whole = False
                continue
            except (SafetensorError, OSError) as error:
                torn = f"is truncated or no safetensors file ({error}); fetch it again"
                problems.append(f"{file} {POINTER if is_pointer(folder / file) else torn}")
                headers.whole = False
                continue
            problems += read_header(file, shard, headers, expected)
        if reason := quantised.refusal(config, headers.quantised):
            problems.append(reason)
        comparable = headers.whole and not headers.quantised
        told = [Problem(path=where_of(name), message=message) for message in problems]
        return cls(folder, name, config, headers.entries) if comparable else None, told

    @cached_property
    def names(self) -> list[str]:
        """The tensors' names, sorted."""
        return sorted(self._entries)

    @cached_property
    def layout(self) -> Layout:
        """Where each tensor stands: before, in or after the layers.

        Raises:
            InputError: the layers cannot be told from the names.
        """
        try:
            return layout_of({name: entry.shape for name, entry in self._entries.items()}, self.config)
        except ValueError as error:
            raise InputError.at(where_of(self.name), str(error)) from error

    @cached_property
    def layer_tensors(self) -> list[tuple[str, ...]]:
        """For each layer the names of its tensors, without the layer's own prefix."""
        layout = self.layout
        prefixes = [f"{layout.layer_prefix}{layer}." for layer in range(layout.layers)]
        return [tuple(t for t in layout.layer_tensors if prefix + t in self._entries) for prefix in prefixes]

    @cached_property
    def carried(self) -> dict[str, tuple[int, str] | None]:
        """The tensors of layers that predict further tokens.

        Of layers that are numbered on: how many layers lie between each and the last one of the stack, and its name
        within the layer. Of a module of their own: None. They take part in no merge: a result has those of its anchor.
        """
        found: dict[str, tuple[int, str] | None] = {}
        prefix, layers = self.layout.layer_prefix, self.layout.layers
        for name in self.names:
            number, _, rest = name.removeprefix(prefix).partition(".")
            if stands_apart(name):
                found[name] = None
            elif name.startswith(prefix) and number.isdecimal() and int(number) >= layers:
                found[name] = (int(number) - layers, rest)
        return found

    @cached_property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(e.dtype.itemsize * torch.Size(e.shape).numel() for e in self._entries.values())

    @cached_property
    def fingerprint(self) -> str:
        """Which weights these are, wherever they lie and however they are sharded, without reading all of them.

        A digest of every tensor's name, type and shape and of its first 1,024 elements, copies of the embeddings left
        out; with other rows it is still that of the files.
        """
        if (files := self._files or self._origin) is not None:
            return files.fingerprint
        digest = hashlib.sha256()
        for name in [name for name in self.names if name not in self.head_copies]:
            digest.update(f"{name}\n{self.dtype(name)}\n{self.shape(name)}\n".encode())
            digest.update(self.tensor(name).reshape(-1)[:1024].view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def copies(self) -> dict[str, set[str]]:
        """For each tensor outside the layers the others there that hold the very same values, if there are any.

        Large ones are read whole to tell; with other rows it is still as in the files.
        """
        if self._origin is not None:
            return self._origin.copies
        found: dict[str, set[str]] = {}
        for name, other in combinations((*self.layout.before, *self.layout.after), 2):
            alike = (self.shape(name), self.dtype(name)) == (self.shape(other), self.dtype(other))
            if alike and torch.equal(self.tensor(name), self.tensor(other)):
                found.setdefault(name, set()).add(other)
                found.setdefault(other, set()).add(name)
        return found

    @cached_property
    def head_copies(self) -> frozenset[str]:
        """The tensors after the layers that are copies of ones before them: of embeddings."""
        before = set(self.layout.before)
        return frozenset(name for name in self.layout.after if before & self.copies.get(name, set()))

    @property
    def origin(self) -> "Checkpoint":
        """The same as it lies in its files."""
        return self._origin or self

    @cached_property
    def made(self) -> frozenset[str]:
        """The tensors that have other rows than in the files."""
        return frozenset(name for name, entry in self._entries.items() if isinstance(entry.shard, _Made))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Number format of a tensor."""
        return self._entries[name].dtype

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, as a view of its file."""
        if name not in self._views:
            self._views[name] = self._entries[name].shard.get_tensor(name)
        return self._views[name]

    def with_rows(self, rows: int, make: Mapping[str, Callable[[], torch.Tensor]]) -> "Checkpoint":
        """The same checkpoint, but each tensor in `make` has so many rows and is computed when it is first read.

        `dtype` is still that of the file; a tensor for which rows were averaged is in float32.
        """
        made = {
            name: Entry(_Made(function), (rows, *self.shape(name)[1:]), self.dtype(name))
            for name, function in make.items()
        }
        config = with_token_rows(self.config, rows)
        entries, origin = self._entries | made, self._origin or self
        return replace(self, config=config, _entries=entries, _views={}, digest=None, _origin=origin)

    def renamed(self, tensors: Sequence[Renamed]) -> "Checkpoint":
        """The same checkpoint with some of its tensors under other names, fused or taken apart."""
        gone = {name for tensor in tensors for name in tensor.of}
        kept = {name: entry for name, entry in self._entries.items() if name not in gone}
        new = {
            name: Entry(_Made(make), shape, reduce(torch.promote_types, map(self.dtype, of)))
            for name, shape, of, make in tensors
        }
        return replace(self, _entries=kept | new, _views={}, digest=None, _files=self._files or self)

    def not_finite(self) -> Iterator[str]:
        """Names of the tensors that hold NaN or infinity. Reads every weight."""
        for name in self.names:
            tensor = self.tensor(name)
            if tensor.is_floating_point() and not all_finite(tensor):
                yield name


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether a float tensor (IEEE 754, 16, 32 or 64 bits) holds neither NaN nor infinity.

    Without their sign, the bits of NaN and infinity are the largest as integers: comparing those is ten times faster
    than `isfinite`, and every weight of every source goes through here.
    """
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize]
    infinity = torch.tensor(float("inf"), dtype=tensor.dtype).view(whole)
    magnitudes = (part & torch.iinfo(whole).max for part in torch.split(tensor.reshape(-1).view(whole), 1 << 17))
    return all(bool(part.amax() < infinity) for part in magnitudes if part.numel())


def _read_config(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """config.json and what is wrong with it."""
    path = folder / "config.json"
    if not path.is_file():
        return {}, [f"{folder} has no config.json; is the path one level too high?"]
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        return {}, [f"config.json is not JSON ({error})"]
    if not isinstance(config, dict):
        return {}, ["config.json is not a JSON object"]
    return config, []
