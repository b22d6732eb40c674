"""Whether sources fit together: the same tensors with the same shapes, a tied head left out or not."""

from collections.abc import Iterable, Mapping

import torch

from evomerge_contract.report import Problem
from evomerge_worker.errors import where_of
from evomerge_worker.shards import Checkpoint

_SHOWN = 3


class Misfits:
    """What does not fit, source by source; a long list is cut to its first few and their number."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def add(self, source: str, message: str) -> None:
        """Note one misfit of `source`, once."""
        messages = self._found.setdefault(source, [])
        if message not in messages:
            messages.append(message)

    def problems(self) -> list[Problem]:
        """All misfits, in the order in which they were found."""
        return [
            Problem(path=where_of(source), message=message)
            for source, messages in self._found.items()
            for message in messages[:_SHOWN] + [f"and {n} more like it" for n in [len(messages) - _SHOWN] if n > 0]
        ]


def outside_tensors(anchor: Checkpoint, sources: Iterable[Checkpoint], misfits: Misfits) -> tuple[list[str], list[str]]:
    """The result's tensors before and after the layers: those of `anchor`, which all `sources` must have.

    A tensor that some have and some lack is left out if it is a copy of another one of its model: a head tied to the
    embeddings, which a checkpoint may hold or leave out. An untied anchor needs its head.
    """
    before, after = anchor.layout.before, anchor.layout.after
    wanted = set(before) | set(after)
    for source in sources:
        held = {*source.layout.before, *source.layout.after}
        for name in sorted(wanted - held):
            if anchor.config.get("tie_word_embeddings") is not False and _is_copy(anchor, name):
                wanted.discard(name)
            else:
                misfits.add(source.name, f"lacks tensor {name}, which {anchor.name} has")
        for name in sorted(held - {*before, *after}):
            if not _is_copy(source, name):
                misfits.add(source.name, f"has tensor {name}, which {anchor.name} lacks")
    return [n for n in before if n in wanted], [n for n in after if n in wanted]


def check_layer(anchor: Checkpoint, layer: int, source: Checkpoint, its_layer: int, misfits: Misfits) -> None:
    """Check that layer `its_layer` of `source` has the tensors of layer `layer` of `anchor`."""
    ours, theirs = anchor.layer_tensors[layer], source.layer_tensors[its_layer]
    if ours == theirs:
        return
    prefix = f"{source.layout.layer_prefix}{its_layer}."
    for name in sorted(set(ours) - set(theirs)):
        misfits.add(source.name, f"lacks tensor {prefix}{name}, which {anchor.name} has in layer {layer}")
    for name in sorted(set(theirs) - set(ours)):
        misfits.add(source.name, f"has tensor {prefix}{name}, which {anchor.name} lacks in layer {layer}")


def check_tensor(
    anchor: Checkpoint, name: str, inputs: Mapping[str, str], checkpoints: Mapping[str, Checkpoint], misfits: Misfits
) -> bool:
    """Whether all `inputs` (model to tensor) are there; checks that they are of the shape and kind of `name`."""
    shape, is_float = anchor.shape(name), anchor.dtype(name).is_floating_point
    complete = True
    for model, tensor in inputs.items():
        source = checkpoints[model]
        if tensor not in source:  # reported already
            complete = False
            continue
        if source.shape(tensor) != shape:
            misfits.add(
                model, f"tensor {tensor} has shape {list(source.shape(tensor))}, but {list(shape)} in {anchor.name}"
            )
        if source.dtype(tensor).is_floating_point != is_float:
            misfits.add(model, f"tensor {tensor} is {source.dtype(tensor)}, but {anchor.dtype(name)} in {anchor.name}")
    return complete


def _is_copy(checkpoint: Checkpoint, name: str) -> bool:
    """Whether another tensor outside the layers holds the very same values."""
    return any(
        other != name
        and checkpoint.shape(other) == checkpoint.shape(name)
        and checkpoint.dtype(other) == checkpoint.dtype(name)
        and torch.equal(checkpoint.tensor(other), checkpoint.tensor(name))
        for other in (*checkpoint.layout.before, *checkpoint.layout.after)
    )
