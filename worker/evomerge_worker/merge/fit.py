"""Whether sources fit together: the same tensors with the same shapes, a tied head left out or not."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from pydantic import Field

from evomerge_contract.report import Problem
from evomerge_worker.errors import where_of
from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.tied import held_heads, own_heads, stand_in, tied_embeddings, ties_head

_COMPUTED = re.compile(r"(^|\.)((attn|attention)\.(masked_)?bias|inv_freq|position_ids)$")
_KINDS = 8
_NUMBER = re.compile(r"\d+")
_FETCH = "if its files are incomplete, fetch them again; else "
_DELETE = "if it can do without, delete it from its files; else "


def is_computed(name: str) -> bool:
    """Whether a tensor is one that older versions of transformers wrote besides weights: all compute it themselves."""
    return bool(_COMPUTED.search(name))


class Misfit(Problem):
    """A problem that is there because `source` and `other` do not go together: either of them may be to blame."""

    source: str = Field(exclude=True)
    other: str = Field(exclude=True)


@dataclass
class _Kind:
    """The first misfit of a kind, what to do, and how many there are."""

    message: str
    remedy: str
    other: str
    tensors: set[str]


class Misfits:
    """What does not fit, source by source: each kind of misfit once, with its first tensor and their number."""

    def __init__(self) -> None:
        self._found: dict[str, dict[tuple[str, str], _Kind]] = {}

    def add(self, source: str, tensor: str, message: str, other: str, *, first: str = "") -> None:
        """Note that `tensor` of `source` does not fit the source `other`: `message`, which may speak of "{tensor}".

        `first` is what to try before either is left out.
        Tensors whose names differ in numbers alone are of one kind where the rest of the message is the same.
        """
        kinds = self._found.setdefault(source, {})
        told = message.replace("{tensor}", f"tensor {tensor}")
        kind = _Kind(told, f"{first}{either_out(source, other)}", other, set())
        kinds.setdefault((_NUMBER.sub("0", tensor), _NUMBER.sub("0", message)), kind).tensors.add(tensor)

    def problems(self) -> list[Problem]:
        """All misfits, in the order in which they were found; beyond the first few kinds, only how many more."""
        return [problem for source, kinds in self._found.items() for problem in _told(source, list(kinds.values()))]


def either_out(source: str, other: str) -> str:
    """What to do where `source` and `other` cannot be merged with each other."""
    return f"leave {source} or {other} out"


def other_depth(source: Checkpoint, anchor: Checkpoint) -> list[Problem]:
    """A problem if `source` cannot be merged whole with `anchor`, because it has another number of layers."""
    layers, wanted = source.layout.layers, anchor.layout.layers
    if layers == wanted:
        return []
    remedy = f"take as many of each by slices in a recipe, or {either_out(source.name, anchor.name)}"
    message = f"has {layers} layers, but {anchor.name} has {wanted}; {remedy}"
    return [_misfit(source.name, anchor.name, message)]


def and_more(count: int) -> str:
    """How many more tensors a sentence speaks of than the one that it names."""
    return f" (and {count} more tensor{'s' if count > 1 else ''} like it)" if count else ""


def _told(source: str, kinds: list[_Kind]) -> Iterator[Problem]:
    for kind in kinds[:_KINDS]:
        message = f"{kind.message}{and_more(len(kind.tensors) - 1)}; {kind.remedy}"
        yield _misfit(source, kind.other, message)
    if rest := sum(len(kind.tensors) for kind in kinds[_KINDS:]):
        yield _misfit(source, kinds[-1].other, f"and {rest} more tensor{'s do' if rest > 1 else ' does'} not fit")


def _misfit(source: str, other: str, message: str) -> Misfit:
    return Misfit(path=where_of(source), message=message, source=source, other=other)


def outside_tensors(
    anchor: Checkpoint, first: Iterable[Checkpoint], last: Iterable[Checkpoint], misfits: Misfits
) -> tuple[list[str], list[str]]:
    """The result's tensors before and after the layers: those of `anchor`, which all sources must have.

    `first` and `last` are the sources at both ends. A head that is tied to the embeddings, and a copy of them wherever
    it is held, is left out: merged by itself it would no longer be one. Where one of `last` has a head of its own, the
    result has one, and those that tie theirs take part with their embeddings. Left out is also what some lack and the
    others have as a copy of another tensor, or what every version of transformers computes by itself.
    """
    before, after = anchor.layout.before, anchor.layout.after
    heads = own_heads(last) if tied_embeddings(anchor) is not None else set()
    sources = list({source.name: source for source in (*first, *last)}.values())
    tied = held_heads(anchor)
    wanted = {*before, *after, *heads} - {
        name for name in tied if all(name not in source or name in held_heads(source) for source in sources)
    }
    for source in sources:
        held = {*source.layout.before, *source.layout.after}
        for name in sorted(wanted - held):
            if is_computed(name) or (name in anchor.copies and ties_head(anchor.config)):
                wanted.discard(name)
            elif stand_in(source, name, _shape(name, anchor, *sources)) == name:
                message = f"lacks {{tensor}}, which {anchor.name} has"
                misfits.add(source.name, name, message, anchor.name, first=_FETCH)
        for name in sorted(held - {*before, *after}):
            stands = stand_in(anchor, name, source.shape(name)) != name
            if name not in source.copies and not is_computed(name) and not stands:
                message = f"has {{tensor}}, which {anchor.name} lacks"
                misfits.add(source.name, name, message, anchor.name, first=_DELETE)
    return [n for n in before if n in wanted], [n for n in (*after, *sorted(heads)) if n in wanted]


def _shape(name: str, *checkpoints: Checkpoint) -> tuple[int, ...]:
    return next(checkpoint.shape(name) for checkpoint in checkpoints if name in checkpoint)


def check_layer(anchor: Checkpoint, layer: int, source: Checkpoint, its_layer: int, misfits: Misfits) -> None:
    """Check that layer `its_layer` of `source` has the tensors of layer `layer` of `anchor`, buffers aside."""
    if anchor.layer_tensors[layer] == source.layer_tensors[its_layer]:
        return
    ours, theirs = _weights(anchor, layer), _weights(source, its_layer)
    prefix = f"{source.layout.layer_prefix}{its_layer}."
    for name in sorted(ours - theirs):
        message = f"lacks {{tensor}}, which {anchor.name} has in layer {layer}"
        misfits.add(source.name, prefix + name, message, anchor.name, first=_FETCH)
    for name in sorted(theirs - ours):
        message = f"has {{tensor}}, which {anchor.name} lacks in layer {layer}"
        misfits.add(source.name, prefix + name, message, anchor.name, first=_DELETE)


def _weights(checkpoint: Checkpoint, layer: int) -> Set[str]:
    return {name for name in checkpoint.layer_tensors[layer] if not is_computed(name)}


def check_tensor(
    anchor: Checkpoint,
    name: str,
    inputs: Sequence[tuple[str, str]],
    checkpoints: Mapping[str, Checkpoint],
    misfits: Misfits,
) -> bool:
    """Whether all `inputs` (model and tensor) are there; checks that they are of the shape and kind of `name`.

    A buffer that is not the same everywhere counts as if it were not there: the result does without it.
    """
    shape, is_float = anchor.shape(name), anchor.dtype(name).is_floating_point
    complete = True
    for model, tensor in inputs:
        source = checkpoints[model]
        if tensor not in source:  # reported already
            complete = False
            continue
        alike = (source.shape(tensor), source.dtype(tensor).is_floating_point) == (shape, is_float)
        if is_computed(name) and not alike:
            complete = False
            continue
        if source.shape(tensor) != shape:
            message = f"{{tensor}} has shape {list(source.shape(tensor))}, but {list(shape)} in {anchor.name}"
            misfits.add(model, tensor, message, anchor.name)
        if source.dtype(tensor).is_floating_point != is_float:
            message = f"{{tensor}} is {source.dtype(tensor)}, but {anchor.dtype(name)} in {anchor.name}"
            misfits.add(model, tensor, message, anchor.name)
    return complete
