"""The headers of a checkpoint's shards: what tensors there are, and what is wrong with them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from evomerge_worker.shards import quantised
from evomerge_worker.shards.dtypes import BUFFERS, FLOATS, REFUSED, refusal

_KNOWN = FLOATS | BUFFERS | REFUSED


class Tensors(Protocol):
    """What gives tensors by name."""

    def get_tensor(self, name: str) -> torch.Tensor:
        """One of them."""


class Shard(Tensors, Protocol):
    """What is used of an open safetensors file."""

    def keys(self) -> list[str]:
        """The tensors' names."""

    def get_slice(self, name: str) -> Any:
        """What the header says of a tensor."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor comes from, and what it is."""

    shard: Tensors
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class Headers:
    """What the shards' headers say: the tensors, and how a person finds those that look quantised.

    `whole`: no tensor is missing from `entries`.
    """

    entries: dict[str, Entry]
    quantised: list[str]
    whole: bool


def read_header(file: str, shard: Shard, headers: Headers, expected: dict[str, str] | None) -> Iterator[str]:
    """Add what a shard's header says to `headers`; yield what is wrong. `expected` maps tensors to files as the index
    does."""
    found = shard.keys()
    refused: dict[str, list[str]] = {}
    for name in sorted(found):
        view = shard.get_slice(name)
        shape, code = tuple(view.get_shape()), view.get_dtype()
        if quantised.looks_quantised(name, code, len(shape)):
            headers.quantised.append(f"tensor {name} in {file} is of type {code}")
            continue
        if reason := refusal(code):
            refused.setdefault(reason, []).append(name)
        if code in _KNOWN:
            headers.entries[name] = Entry(shard, shape, _KNOWN[code])
        else:
            headers.whole = False
    for reason, names in refused.items():
        yield f"tensor {names[0]} in {file} {reason}{_and_more(names)}"
    if expected is not None:
        listed = {name for name, its_file in expected.items() if its_file == file}
        if absent := sorted(listed - set(found)):
            headers.whole = False
            yield f"the index lists tensor {absent[0]} in {file}, which does not hold it{_and_more(absent)}"
        if stray := sorted(set(found) - listed):
            yield f"{file} holds tensor {stray[0]}, which the index does not list there{_and_more(stray)}"


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more tensors like it)" if len(names) > 1 else ""
