"""Which tensor of a live model holds which tensor of its checkpoint."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.tied import held_heads


def find_slots(model: Any, checkpoint: Checkpoint) -> dict[str, Tensor] | None:
    """The live parameter or buffer of every tensor that `checkpoint` has on disk and `model` has a use for.

    Heads that are tied have none: they share that of the embeddings.

    `model` has just been loaded from `checkpoint`, so a slot is known by its content. It bears the tensor's name, with
    or without the prefix of the base model; if transformers has renamed it, it is the only one left of that content.
    None where there is no such one-to-one relation: tensors are fused or otherwise converted on loading, or two on disk
    share one in memory.
    """
    live: dict[str, Tensor] = model.state_dict(keep_vars=True)
    tied = held_heads(checkpoint)
    wanted = [name for name in checkpoint.names if name not in tied]
    named = {name: next((n for n in _names(model, name) if n in live), None) for name in wanted}
    taken = _places(live[n] for n in named.values() if n is not None)
    left = list({tensor.data_ptr(): tensor for tensor in live.values() if tensor.data_ptr() not in taken}.values())
    slots: dict[str, Tensor] = {}
    for name, live_name in named.items():
        tensor = checkpoint.tensor(name)
        candidates = left if live_name is None else [live[live_name]]
        holders = [slot for slot in candidates if _holds(slot, tensor)]
        if len(holders) > 1 or (live_name is not None and not holders):
            return None
        if holders:
            slots[name] = holders[0]
    places = _places(slots.values())
    return slots if len(places) == len(slots) and places == _places(live.values()) else None


def _names(model: Any, name: str) -> tuple[str, ...]:
    prefix = f"{model.base_model_prefix}."
    return (name, prefix + name, name.removeprefix(prefix))


def _holds(slot: Tensor, tensor: Tensor) -> bool:
    return slot.shape == tensor.shape and torch.equal(slot, tensor.to(device=slot.device, dtype=slot.dtype))


def _places(tensors: Iterable[Tensor]) -> set[int]:
    return {tensor.data_ptr() for tensor in tensors}
