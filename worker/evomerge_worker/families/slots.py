"""Which tensor of a live model holds which tensor of its checkpoint."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.tied import held_heads

_START = 64  # elements by which a tensor is looked up before it is compared


def find_slots(model: Any, checkpoint: Checkpoint) -> dict[str, Tensor] | None:
    """Where in memory each tensor lies that `checkpoint` has on disk and `model` has a use for.

    Heads that are tied have none: they share that of the embeddings.

    `model` has just been loaded from `checkpoint`, so a slot is known by its content. It is the live parameter or
    buffer that bears the tensor's name, with or without the prefix of the base model; if transformers has renamed it or
    put several into one (a layer's experts), the only place left that holds the same.
    None where there is no such one-to-one relation: tensors are converted otherwise on loading, or two on disk share
    one in memory.
    """
    live: dict[str, Tensor] = model.state_dict(keep_vars=True)
    tied = held_heads(checkpoint)
    wanted = [name for name in checkpoint.names if name not in tied]
    named = {name: next((n for n in live_names(model, name) if n in live), None) for name in wanted}
    taken = _places(live[n] for n in named.values() if n is not None)
    places = {tensor.data_ptr(): tensor for tensor in live.values()}
    left = _Parts([tensor for place, tensor in places.items() if place not in taken])
    slots: dict[str, Tensor] = {}
    for name, live_name in named.items():
        tensor = checkpoint.tensor(name)
        candidates = left.like(tensor) if live_name is None else [live[live_name]]
        holders = [slot for slot in candidates if _holds(slot, tensor)]
        if len(holders) > 1 or (live_name is not None and not holders):
            return None
        if holders:
            slots[name] = holders[0]
    apart = len(_places(slots.values())) == len(slots)
    return slots if apart and _elements(slots.values()) == _elements(places.values()) else None


class _Parts:
    """Tensors, and the equal parts that each may be made of, one after the other in memory."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = [tensor for tensor in tensors if tensor.is_contiguous()]
        self._starts: dict[torch.Size, dict[tuple[torch.dtype, bytes], list[Tensor]]] = {}

    def like(self, tensor: Tensor) -> Iterator[Tensor]:
        """The parts that have the shape of `tensor` and begin as it does."""
        if tensor.shape not in self._starts:
            starts = self._starts[tensor.shape] = {}
            for parts in (_cut(whole, tensor.shape) for whole in self._tensors):
                for part, start in zip(parts, _beginnings(parts), strict=True):
                    starts.setdefault((part.dtype, start), []).append(part)
        for dtype in {whole.dtype for whole in self._tensors}:
            (start,) = _beginnings(tensor.reshape(1, -1)[:, :_START].to(dtype))
            yield from self._starts[tensor.shape].get((dtype, start), [])


def _cut(tensor: Tensor, shape: torch.Size) -> Tensor:
    """The parts of that shape, [number, *shape]: none where `tensor` is not whole blocks of its rows."""
    rows = tensor.dim() - len(shape)
    fits = tensor.numel() and rows >= 0 and tensor.shape[rows + 1 :] == shape[1:]
    if not fits or (shape and (shape[0] == 0 or tensor.shape[rows] % shape[0])):
        return tensor.new_empty((0, *shape))
    return tensor.detach().view(-1, *shape)


def _beginnings(parts: Tensor) -> list[bytes]:
    """The bytes of the first elements of each of `parts`."""
    if not len(parts):
        return []
    starts = parts.reshape(len(parts), -1)[:, :_START].contiguous().view(torch.uint8)
    return [start.tobytes() for start in starts.cpu().numpy()]


def live_names(model: Any, name: str) -> tuple[str, ...]:
    """What a tensor or module that is called `name` on disk may be called in a live model."""
    prefix = f"{model.base_model_prefix}."
    return (name, prefix + name, name.removeprefix(prefix))


def _holds(slot: Tensor, tensor: Tensor) -> bool:
    return slot.shape == tensor.shape and torch.equal(slot, tensor.to(device=slot.device, dtype=slot.dtype))


def _places(tensors: Iterable[Tensor]) -> set[int]:
    return {tensor.data_ptr() for tensor in tensors}


def _elements(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
