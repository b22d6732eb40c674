"""Models that are called otherwise on disk: brought under the names of the one that they are merged with.

Older files say gamma where newer ones say weight, a prefix is there or is not, and experts lie one by one or as one
tensor. transformers loads all of these: what one of its models makes of the names says which tensors are the same.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evomerge_worker.merge.fit import is_computed
from evomerge_worker.pages import in_file
from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.checkpoint import Renamed
from evomerge_worker.shards.layout import split_number

_STACKED = ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)])
"""What transformers does with experts that lie one by one: their matrices become one tensor, pairs of them in turn."""


class _Part(NamedTuple):
    """Which part of a live tensor a tensor on disk is: all of it, or of one expert the so manieth of its matrices.

    Parts of another make bear a pattern of names.
    """

    expert: int | None = None
    matrix: int = 0
    pattern: str | None = None


_WHOLE = _Part()
_Live = Mapping[str, Mapping[_Part, str]]
"""What a checkpoint's tensors become: by the live tensor's name its parts, by theirs."""


class _Disk(NamedTuple):
    """A tensor on disk: what stands before and behind its layer's number, if it has one, and its shape."""

    prefix: str
    rest: str | None
    shape: tuple[int, ...]

    def named(self, number: int | None) -> str:
        return self.prefix if number is None else f"{self.prefix}{number}.{self.rest}"


class Names:
    """Checkpoints under the names of others; kept, since a search merges the same ones."""

    def __init__(self) -> None:
        self._done: dict[tuple[int, int], Checkpoint] = {}
        self._live: dict[int, _Live | None] = {}

    def under(self, anchor: Checkpoint, checkpoint: Checkpoint) -> Checkpoint:
        """`checkpoint` with the tensors' names of `anchor`; itself where they are the same, or nobody knows."""
        key = (id(anchor), id(checkpoint))
        if key not in self._done:
            self._done[key] = self._under(anchor, checkpoint) if _called_otherwise(anchor, checkpoint) else checkpoint
        return self._done[key]

    def _under(self, anchor: Checkpoint, checkpoint: Checkpoint) -> Checkpoint:
        theirs, ours = self._live_of(anchor), self._live_of(checkpoint)
        if theirs is None or ours is None:
            return checkpoint
        return checkpoint.renamed(list(_renamed(_table(anchor, theirs), checkpoint, ours)))

    def _live_of(self, checkpoint: Checkpoint) -> _Live | None:
        if id(checkpoint) not in self._live:
            self._live[id(checkpoint)] = _live(checkpoint)
        return self._live[id(checkpoint)]


def named_class(config: Any) -> Any:
    """The class of transformers that config.json names and that takes such a configuration; None if there is none."""
    import transformers

    named = config.architectures if isinstance(config.architectures, list) else []
    classes = (getattr(transformers, name, None) for name in named if isinstance(name, str))
    return next((kind for kind in classes if getattr(kind, "config_class", None) is type(config)), None)


def _called_otherwise(anchor: Checkpoint, checkpoint: Checkpoint) -> bool:
    """Whether each has tensors that the other has not, by names."""
    if anchor.config.get("model_type") != checkpoint.config.get("model_type"):
        return False
    theirs, ours = _kinds(anchor), _kinds(checkpoint)
    return bool(theirs - ours) and bool(ours - theirs)


def _kinds(checkpoint: Checkpoint) -> set[str]:
    layout = checkpoint.layout
    in_layers = {f"{layout.layer_prefix}*.{rest}" for rest in layout.layer_tensors}
    return {name for name in in_layers.union(layout.before, layout.after) if not is_computed(name)}


def _live(checkpoint: Checkpoint) -> _Live | None:
    """What transformers makes of a checkpoint's names; None where it has no class for it, or none that can be made."""
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    if checkpoint.config.get("model_type") not in CONFIG_MAPPING:
        return None
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True)
        kind = named_class(config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config) if kind is None else kind._from_config(config)
    except Exception:  # whatever the class finds wrong: the prepare task tells it
        return None
    mapping = get_model_conversion_mapping(model)
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    state = model.state_dict()
    found: defaultdict[str, dict[_Part, str]] = defaultdict(dict)
    for name in checkpoint.names:
        live, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if live not in state and name in state:
            live, pattern = name, None
        if live in state:
            converter = next((one for one in converters if pattern in one.source_patterns), None)
            found[live][_part(name, pattern, converter)] = name
    return found


def _part(name: str, pattern: str | None, converter: Any) -> _Part:
    if pattern is None or converter is None:
        return _WHOLE
    numbers = re.findall(r"\.(\d+)(?=\.)", name)
    operations = [(type(operation).__name__, getattr(operation, "dim", None)) for operation in converter.operations]
    if operations in _STACKED and len(converter.target_patterns) == 1 and numbers:
        return _Part(int(numbers[-1]), list(converter.source_patterns).index(pattern))
    return _Part(pattern=re.sub(r"\d+", "*", name))


_Table = Mapping[tuple[str, str | None], Mapping[_Part, _Disk]]


def _table(anchor: Checkpoint, live: _Live) -> _Table:
    """The anchor's tensors by the live ones, whatever the layer: a model may have more layers than the anchor."""
    found: defaultdict[tuple[str, str | None], dict[_Part, _Disk]] = defaultdict(dict)
    for name, parts in live.items():
        prefix, _, rest = split_number(name)
        for part, disk in parts.items():
            its_prefix, _, its_rest = split_number(disk)
            found[prefix, rest].setdefault(part, _Disk(its_prefix, its_rest, anchor.shape(disk)))
    return found


def _renamed(table: _Table, checkpoint: Checkpoint, live: _Live) -> Iterator[Renamed]:
    """The tensors under the anchor's names, as far as it has the same."""
    for name, ours in live.items():
        prefix, number, rest = split_number(name)
        theirs = table.get((prefix, rest), {})
        if theirs.keys() == ours.keys():
            for part, disk in theirs.items():
                own = ours[part]
                yield Renamed(disk.named(number), checkpoint.shape(own), [own], partial(checkpoint.tensor, own))
        elif theirs.keys() == {_WHOLE} and _are_stacked(ours):
            shape = _stack_shape(checkpoint, ours)
            yield Renamed(
                theirs[_WHOLE].named(number), shape, list(ours.values()), partial(_stacked, checkpoint, ours, shape)
            )
        elif ours.keys() == {_WHOLE} and _are_stacked(theirs):
            whole = ours[_WHOLE]
            for part, rows in _rows({part: disk.shape for part, disk in theirs.items()}).items():
                cut = partial(_cut, checkpoint, whole, part, rows)
                yield Renamed(theirs[part].named(number), theirs[part].shape, [whole], cut)


def _are_stacked(parts: Mapping[_Part, Any]) -> bool:
    """Whether they are all matrices of all experts."""
    experts, matrices = {part.expert for part in parts}, {part.matrix for part in parts}
    return None not in experts and len(parts) == len(experts) * len(matrices)


def _rows(shapes: Mapping[_Part, tuple[int, ...]]) -> dict[_Part, slice]:
    """Which rows of its expert's matrix in the stack each part has."""
    found, ends = {}, defaultdict[int | None, int](int)
    for part in sorted(shapes, key=lambda part: (part.expert or 0, part.matrix)):
        start = ends[part.expert]
        ends[part.expert] = start + shapes[part][0]
        found[part] = slice(start, ends[part.expert])
    return found


def _stack_shape(checkpoint: Checkpoint, parts: Mapping[_Part, str]) -> tuple[int, ...]:
    shapes = {part: checkpoint.shape(name) for part, name in parts.items()}
    rows = max(rows.stop for rows in _rows(shapes).values())
    return (len({part.expert for part in parts}), rows, *next(iter(shapes.values()))[1:])


def _stacked(checkpoint: Checkpoint, parts: Mapping[_Part, str], shape: tuple[int, ...]) -> Tensor:
    tensors = {part: checkpoint.tensor(name) for part, name in parts.items()}
    result = in_file(shape, reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values())))
    for part, rows in _rows({part: tuple(tensor.shape) for part, tensor in tensors.items()}).items():
        result[part.expert or 0, rows] = tensors[part]
    return result


def _cut(checkpoint: Checkpoint, whole: str, part: _Part, rows: slice) -> Tensor:
    return checkpoint.tensor(whole)[part.expert or 0, rows]
