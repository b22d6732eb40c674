"""The parameters that a recipe gives each part of the model, read from the recipe itself, tensor by tensor."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from evomerge_contract.filters import value_for
from evomerge_contract.recipe import Recipe, Setting
from evomerge_contract.report import Layout

SHARED = ""
"""Stands for the model where a parameter has one value for all."""

ParameterKey = tuple[str, str]  # parameter, model
_Values = dict[ParameterKey, float]
_Settings = dict[ParameterKey, Setting]


@dataclass(frozen=True)
class ModelPart:
    """A part of the model with the values that all its tensors share. `tensors` counts them."""

    label: str
    values: Mapping[ParameterKey, float]
    tensors: int


@dataclass
class _Run:
    """Consecutive layers in which the tensors `parts` have the same values."""

    parts: tuple[str, ...]
    values: _Values
    layers: list[int] = field(default_factory=list)


def places(recipe: Recipe, layout: Layout) -> list[ModelPart]:
    """The parts of the model from embeddings to head: layers that agree are one place, a layer that does not is split.

    Only scalars and filters are read, which is all that a decoded genome has; a gradient's values are left out.
    """
    slices = _slices(recipe, layout)
    found = [
        *_outside("embeddings", layout.before, slices[0][1]),
        *_inside(layout, slices),
        *_outside("final norm and head", layout.after, slices[-1][1]),
    ]
    if len({tuple(p.values.items()) for p in found}) == 1:
        return [ModelPart("whole model", found[0].values, sum(p.tensors for p in found))]
    return found


def parameters(found: Iterable[ModelPart]) -> dict[str, list[str]]:
    """The models, in order, that each parameter has values for (`SHARED` alone where it is one for all)."""
    models: dict[str, list[str]] = {}
    for place in found:
        for parameter, model in place.values:
            known = models.setdefault(parameter, [])
            if model not in known:
                known.append(model)
    return models


def _slices(recipe: Recipe, layout: Layout) -> list[tuple[range, _Settings]]:
    """The layers of each slice and the settings that hold there."""
    if recipe.slices is None:
        settings: _Settings = {(p, m.model): s for m in recipe.models or [] for p, s in (m.parameters or {}).items()}
        return [(range(layout.layers), settings)]
    slices = []
    for part in recipe.slices:
        own: _Settings = {(p, s.model): v for s in part.sources for p, v in (s.parameters or {}).items()}
        shared: _Settings = {(p, SHARED): v for p, v in (part.parameters or {}).items()}
        slices.append((range(*part.sources[0].layer_range), own | shared))
    return slices


def _outside(label: str, tensors: list[str], settings: _Settings) -> list[ModelPart]:
    classes = _by_values(tensors, settings)
    return [
        ModelPart(label if len(classes) == 1 else f"{label}: {_named(names)}", dict(values), len(names))
        for values, names in classes.items()
    ]


def _inside(layout: Layout, slices: list[tuple[range, _Settings]]) -> list[ModelPart]:
    runs: list[_Run] = []
    for layer, settings in ((layer, settings) for layers, settings in slices for layer in layers):
        prefix = f"{layout.layer_prefix}{layer}."
        for values, names in _by_values([prefix + t for t in layout.layer_tensors], settings).items():
            parts = tuple(n.removeprefix(prefix) for n in names)
            going_on = next((r for r in runs if r.parts == parts and r.layers[-1] == layer - 1), None)
            if going_on is not None and tuple(going_on.values.items()) == values:
                going_on.layers.append(layer)
            else:
                runs.append(_Run(parts, dict(values), [layer]))
    whole = len(layout.layer_tensors)
    return [
        ModelPart(
            _layers(run.layers)
            if len(run.parts) == whole
            else f"{_layers(run.layers)}: {_named(run.parts, layout.layer_tensors)}",
            run.values,
            len(run.parts) * len(run.layers),
        )
        for run in sorted(runs, key=lambda r: r.layers[0])
    ]


def _by_values(tensors: Iterable[str], settings: _Settings) -> dict[tuple[tuple[ParameterKey, float], ...], list[str]]:
    """The tensors that share their values."""
    classes: dict[tuple[tuple[ParameterKey, float], ...], list[str]] = {}
    for tensor in tensors:
        values = ((key, value_for(setting, tensor)) for key, setting in settings.items())
        known = tuple((key, float(value)) for key, value in values if value is not None and not isinstance(value, list))
        classes.setdefault(known, []).append(tensor)
    return classes


def _layers(layers: list[int]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}–{layers[-1]}"


def _named(tensors: Iterable[str], among: Iterable[str] = ()) -> str:
    """Tensors by their modules; one whose tensors `among` all the layer's are all there, by the outermost module."""
    named, all_named = ([t.removesuffix(".weight").removesuffix(".bias") for t in names] for names in (tensors, among))
    apart = {_head(m) for m in all_named if m not in named}
    return ", ".join(dict.fromkeys(m if not all_named or _head(m) in apart else _head(m) for m in named))


def _head(module: str) -> str:
    return module.split(".")[0]
