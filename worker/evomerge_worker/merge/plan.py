"""What is to be done for each tensor of the result: which tensors are merged, with which parameters."""

from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from typing import NamedTuple

import torch

from evomerge_contract.recipe import Recipe, Slice, SliceSource
from evomerge_contract.report import Problem
from evomerge_worker.errors import InputError
from evomerge_worker.merge.fit import Misfits, check_layer, check_tensor, other_depth, outside_tensors
from evomerge_worker.merge.layers import layer_kinds, result_kinds
from evomerge_worker.merge.parameters import TensorParameters
from evomerge_worker.merge.settings import ParameterValue
from evomerge_worker.merge.slices import anchor_of, base_of, counted_mistakes, has_form, sliced, spoken_mistakes
from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.dtypes import BY_NAME
from evomerge_worker.shards.tied import stand_in

__all__ = ["Input", "TensorPlan", "anchor_of", "plan_merge"]


class Input(NamedTuple):
    """A tensor that takes part, with the values of the method's per-model parameters."""

    model: str
    tensor: str
    values: Mapping[str, float]


class TensorPlan(NamedTuple):
    """How tensor `name` of the result comes about, rounded once to `dtype`.

    `method` None copies the one input. `base` is set exactly for the methods that take one; it is not in `inputs`,
    which are in the recipe's order.
    `shared` holds the parameters that are not per model, switches included.
    """

    name: str
    method: str | None
    inputs: tuple[Input, ...]
    base: Input | None
    shared: Mapping[str, ParameterValue]
    dtype: torch.dtype

    @property
    def like(self) -> Input:
        """An input whose shape is the result's."""
        return self.inputs[0] if self.inputs or self.base is None else self.base


class _Like(NamedTuple):
    """A tensor that one of the result must be like: of its shape, of numbers of its sort."""

    checkpoint: Checkpoint
    tensor: str


class _Place(NamedTuple):
    """A tensor of the result: its slice, its place `t` in a gradient, and its name in each source of the slice."""

    name: str
    slice: Slice
    t: float
    tensors: tuple[str, ...]
    like: _Like


def plan_merge(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> list[TensorPlan]:
    """Plan `recipe` over the sources `checkpoints` (by the names it uses), tensor by tensor in the model's order.

    Parameters are resolved as mergekit does: slice source (or model) before slice before the whole recipe; filters
    match the source's tensor name, shared parameters the result's; gradients run over a slice's layers, and are taken
    at t = 0 outside the layers, where embeddings belong to the first slice and final norm and head to the last.

    Raises:
        InputError: everything that is wrong with the recipe, or all that keeps the sources from being merged.
    """
    told = _problems(spoken_mistakes(recipe, set(checkpoints)))
    if not has_form(recipe) or not set(recipe.merged_models) <= set(checkpoints):
        raise InputError(*told)
    slices = sliced(recipe, {name: checkpoint.layout.layers for name, checkpoint in checkpoints.items()})
    if counted := _counted(recipe, slices, checkpoints):
        raise InputError(*told, *counted)
    try:
        plans, found = _planned(recipe, slices, checkpoints)
    except InputError as error:
        raise InputError(*told, *error.problems) from error
    places = {problem.path for problem in told}
    if problems := [*told, *(problem for problem in found if problem.path not in places)]:
        raise InputError(*problems)
    return plans


def _counted(recipe: Recipe, slices: list[Slice], checkpoints: Mapping[str, Checkpoint]) -> list[Problem]:
    """What is wrong with numbers of models and layers."""
    layers = {name: checkpoint.layout.layers for name, checkpoint in checkpoints.items()}
    problems = _problems(counted_mistakes(recipe, slices, layers))
    if not recipe.slices:
        anchor = checkpoints[anchor_of(recipe)]
        problems += [p for source in slices[0].sources for p in other_depth(checkpoints[source.model], anchor)]
    return problems


def _planned(
    recipe: Recipe, slices: list[Slice], checkpoints: Mapping[str, Checkpoint]
) -> tuple[list[TensorPlan], list[Problem]]:
    """The plans of all tensors that fit, and what does not fit or has no value.

    Raises:
        InputError: layers cannot stand where the slices put them.
    """
    misfits, parameters = Misfits(), TensorParameters(recipe)
    plans = []
    for place in _places(slices, checkpoints[anchor_of(recipe)], checkpoints, misfits):
        inputs = [(source.model, tensor) for source, _, tensor in _inputs(place, checkpoints)]
        if check_tensor(*place.like, inputs, checkpoints, misfits):
            plans.append(_tensor_plan(recipe, place, checkpoints, parameters))
    plans += _carried(recipe, slices, checkpoints)
    return plans, [*misfits.problems(), *_problems(parameters.mistakes.items())]


def _problems(mistakes: Iterable[tuple[str, str]]) -> list[Problem]:
    return [Problem(path=path, message=message) for path, message in mistakes]


def _places(
    slices: list[Slice], anchor: Checkpoint, checkpoints: Mapping[str, Checkpoint], misfits: Misfits
) -> Iterator[_Place]:
    """The tensors of the result: before the layers, layer by layer, after them."""
    kinds = result_kinds(slices, anchor, checkpoints)
    anchor_kinds = [] if kinds is None else layer_kinds(anchor)
    firsts, lasts = ([checkpoints[source.model] for source in one.sources] for one in (slices[0], slices[-1]))
    before, after = outside_tensors(anchor, firsts, lasts, misfits)
    yield from (_outside(name, slices[0], anchor) for name in before)
    layer = 0
    for one in slices:
        start, end = one.sources[0].layer_range
        for offset in range(end - start):
            t = offset / (end - start - 1) if end - start > 1 else 1.0
            like = (anchor, layer)
            if kinds is not None:  # one of the anchor of this kind, or the source's own where the anchor has none
                same = kinds[layer] in anchor_kinds
                first = (checkpoints[one.sources[0].model], start + offset)
                like = (anchor, anchor_kinds.index(kinds[layer])) if same else first
            yield from _layer_places(
                one, f"{anchor.layout.layer_prefix}{layer}.", offset, t, like, checkpoints, misfits
            )
            layer += 1
    for name in after:
        yield _outside(name, slices[-1], next(model for model in (anchor, *lasts) if name in model))


def _carried(recipe: Recipe, slices: list[Slice], checkpoints: Mapping[str, Checkpoint]) -> Iterator[TensorPlan]:
    """The anchor's layers that predict further tokens, copied: those that are numbered on behind the result's last one.

    What they predict is checked by the model itself, so they change how fast it answers and not what: those of another
    model would do, and models that have lost them are merged as well.
    """
    anchor = checkpoints[anchor_of(recipe)]
    layers = sum(one.sources[0].layer_range[1] - one.sources[0].layer_range[0] for one in slices)
    for tensor, numbered in anchor.carried.items():
        name = tensor
        if numbered is not None:
            behind, rest = numbered
            name = f"{anchor.layout.layer_prefix}{layers + behind}.{rest}"
        copied = Input(anchor.name, tensor, {})
        floats = anchor.dtype(tensor).is_floating_point
        dtype = _dtype(recipe, [copied], checkpoints) if floats else anchor.dtype(tensor)
        yield TensorPlan(name, None, (copied,), None, {}, dtype)


def _outside(name: str, one: Slice, like: Checkpoint) -> _Place:
    return _Place(name, one, 0.0, (name,) * len(one.sources), _Like(like, name))


def _layer_places(
    one: Slice,
    result_prefix: str,
    offset: int,
    t: float,
    like: tuple[Checkpoint, int],
    checkpoints: Mapping[str, Checkpoint],
    misfits: Misfits,
) -> Iterator[_Place]:
    """The tensors of a layer, which are those of the layer that it must be `like`."""
    prefixes = []
    for source in one.sources:
        checkpoint = checkpoints[source.model]
        its_layer = source.layer_range[0] + offset
        check_layer(*like, checkpoint, its_layer, misfits)
        prefixes.append(f"{checkpoint.layout.layer_prefix}{its_layer}.")
    model, its_number = like
    for rest in model.layer_tensors[its_number]:
        tensors = tuple(prefix + rest for prefix in prefixes)
        yield _Place(
            result_prefix + rest, one, t, tensors, _Like(model, f"{model.layout.layer_prefix}{its_number}.{rest}")
        )


def _tensor_plan(
    recipe: Recipe, place: _Place, checkpoints: Mapping[str, Checkpoint], parameters: TensorParameters
) -> TensorPlan:
    if not place.like.checkpoint.dtype(place.like.tensor).is_floating_point:
        return _copy(place)
    base_model = base_of(recipe, place.slice)
    base: Input | None = None
    inputs: list[Input] = []
    for source, name, tensor in _inputs(place, checkpoints):
        if source.model == base_model and base is None:
            base = Input(source.model, tensor, {})
        else:
            inputs.append(Input(source.model, tensor, parameters.per_model(place.slice, place.t, source, name)))
    return TensorPlan(
        name=place.name,
        method=recipe.merge_method,
        inputs=tuple(inputs),
        base=base,
        shared=parameters.shared(place.slice, place.t, place.name),
        dtype=_dtype(recipe, [*inputs, *([base] if base else [])], checkpoints),
    )


def _inputs(place: _Place, checkpoints: Mapping[str, Checkpoint]) -> Iterator[tuple[SliceSource, str, str]]:
    """The sources of a tensor of the result with the name that filters ask for, and that of what takes part."""
    shape = place.like.checkpoint.shape(place.like.tensor)
    for source, name in zip(place.slice.sources, place.tensors, strict=True):
        yield source, name, stand_in(checkpoints[source.model], name, shape)


def _copy(place: _Place) -> TensorPlan:
    """Whole numbers and truth values are no weights: the anchor's are taken as they are."""
    model, tensor = place.like
    return TensorPlan(place.name, None, (Input(model.name, tensor, {}),), None, {}, model.dtype(tensor))


def _dtype(recipe: Recipe, inputs: list[Input], checkpoints: Mapping[str, Checkpoint]) -> torch.dtype:
    """What the recipe names; else the sources' own, the wider where they differ."""
    named = recipe.out_dtype or recipe.dtype
    if named is not None:
        return BY_NAME[named]
    return reduce(torch.promote_types, (checkpoints[i.model].dtype(i.tensor) for i in inputs))
