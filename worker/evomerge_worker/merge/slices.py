"""A recipe in one form, slices, and whatever is wrong with what it says; no tensor is looked at."""

from collections.abc import Iterable, Iterator, Mapping

from evomerge_contract.methods import METHODS, so_many_models
from evomerge_contract.recipe import Parameters, Recipe, RecipeModel, Slice, SliceSource
from evomerge_contract.spelling import nearest
from evomerge_worker.merge.chat_template import template_mistake
from evomerge_worker.merge.settings import mistakes

_Mistakes = Iterator[tuple[str, str]]


def base_of(recipe: Recipe, one: Slice) -> str | None:
    """The base_model of a slice, its own or else the recipe's, where the method gives it a part of its own.

    None where it is a model like any other.
    """
    return None if METHODS[recipe.merge_method].base == "input" else one.base_model or recipe.base_model


def anchor_of(recipe: Recipe) -> str:
    """The source that gives the result its config, tokenizer, names and buffers: the base, else the first model."""
    if recipe.base_model is not None:
        return recipe.base_model
    if recipe.slices:
        return recipe.slices[0].base_model or recipe.slices[0].sources[0].model
    return (recipe.models or [])[0].model


def sliced(recipe: Recipe, layers: Mapping[str, int]) -> list[Slice]:
    """The slices of `recipe`; whole models are one slice, with the base added if it is not among them.

    `layers` is each source's number of layers.
    """
    if recipe.slices:
        return recipe.slices
    models = list(recipe.models or [])
    if recipe.base_model is not None and all(m.model != recipe.base_model for m in models):
        models.append(RecipeModel(model=recipe.base_model))
    whole = [SliceSource(model=m.model, layer_range=(0, layers[m.model]), parameters=m.parameters) for m in models]
    return [Slice(sources=whole)]


def has_form(recipe: Recipe) -> bool:
    """Whether a recipe names a method there is, and either models or slices: else nothing more can be told of it."""
    return recipe.merge_method in METHODS and (not recipe.models) != (not recipe.slices)


def spoken_mistakes(recipe: Recipe, sources: set[str]) -> _Mistakes:
    """What is wrong before any layer is counted, as (path, message). `sources` are the names that may be used."""
    if recipe.merge_method not in METHODS:
        known = ", ".join(sorted(METHODS))
        near = nearest(recipe.merge_method, METHODS)
        meant = f"did you mean {near}?" if near else f"it has {known}"
        yield "recipe.merge_method", f"{recipe.merge_method} is not a method this version has; {meant}"
    if (not recipe.models) == (not recipe.slices):
        yield "recipe", "give either models or slices"
    if message := template_mistake(recipe.chat_template or ""):
        yield "recipe.chat_template", message
    if not has_form(recipe):
        return
    if METHODS[recipe.merge_method].needs_base_model and recipe.base_model is None and not _own_bases(recipe):
        yield "recipe.base_model", f"{recipe.merge_method} needs a base_model"
    if recipe.base_model is not None:
        yield from _unknown_model(recipe.base_model, "recipe.base_model", sources)
    method = METHODS[recipe.merge_method]
    yield from mistakes(recipe.parameters, recipe.merge_method, method, "recipe")
    for where, part in _parts(recipe):
        if not isinstance(part, Slice):
            yield from _unknown_model(part.model, f"{where}.model", sources)
        elif part.base_model is not None:
            yield from _unknown_model(part.base_model, f"{where}.base_model", sources)
        yield from mistakes(part.parameters, recipe.merge_method, method, where, for_all=isinstance(part, Slice))
    yield from _without_value(recipe)


def _without_value(recipe: Recipe) -> _Mistakes:
    """Parameters that must be given and are nowhere."""
    name_of, method = recipe.merge_method, METHODS[recipe.merge_method]
    found: dict[str, str] = {}  # by their places: slices may lack the same

    def missing(names: Iterable[str], *scopes: Parameters | None) -> list[str]:
        given = set(method.defaults).union(*(scope or {} for scope in scopes))
        return [name for name in names if name not in given]

    for one in sliced(recipe, dict.fromkeys(recipe.merged_models, 1)):
        for name in missing(method.shared | method.numerics, one.parameters, recipe.parameters):
            found[f"recipe.{name}"] = f"{name_of} needs a {name}"
        for source in one.sources:
            if source.model != base_of(recipe, one):
                for name in missing(method.per_model, source.parameters, one.parameters, recipe.parameters):
                    found[f"recipe.{name}[{source.model}]"] = f"{name_of} needs a {name} for {source.model}"
    yield from found.items()


def _own_bases(recipe: Recipe) -> bool:
    """Whether every slice has a base_model of its own."""
    return bool(recipe.slices) and all(one.base_model is not None for one in recipe.slices or [])


def _parts(recipe: Recipe) -> Iterator[tuple[str, RecipeModel | SliceSource | Slice]]:
    """All parts that have parameters of their own, with their paths."""
    for i, model in enumerate(recipe.models or []):
        yield f"recipe.models[{i}]", model
    for i, one in enumerate(recipe.slices or []):
        yield f"recipe.slices[{i}]", one
        for j, source in enumerate(one.sources):
            yield f"recipe.slices[{i}].sources[{j}]", source


def _unknown_model(model: str, where: str, sources: set[str]) -> _Mistakes:
    if model not in sources:
        yield where, f"{model} is not among the sources ({', '.join(sorted(sources))})"


def counted_mistakes(recipe: Recipe, slices: list[Slice], layers: Mapping[str, int]) -> _Mistakes:
    """What is wrong with the slices of a recipe, as (path, message); of models that `layers` lacks less can be told.

    The first slice may have no layers, and only give the embeddings, and so the last, for final norm and head.
    """
    for i, one in enumerate(slices):
        where = f"recipe.slices[{i}]" if recipe.slices else "recipe.models"
        yield from _count_mistakes(recipe, one, where)
        if recipe.slices:
            yield from _range_mistakes(one, where, layers, empty=i in (0, len(slices) - 1))
    if recipe.slices and not any(_length(source) for one in slices for source in one.sources):
        yield "recipe.slices", "have no layers at all; layer_range is the first layer, and the one behind the last"


def _count_mistakes(recipe: Recipe, one: Slice, where: str) -> _Mistakes:
    """What is wrong with how many models a slice has."""
    models = [source.model for source in one.sources]
    yield from _given_twice(recipe, one, where)
    method, base = METHODS[recipe.merge_method], base_of(recipe, one)
    if base is None and method.needs_base_model:
        return  # told already
    merged = len(models) - (base in models)
    if merged < method.least or (method.most is not None and merged > method.most):
        wanted = so_many_models(method.least, method.most)
        beside = " beside its base_model" if base is not None else ""
        yield where, f"{recipe.merge_method} merges {wanted}{beside}; here are {merged}"
    if base is not None and base not in models:
        yield where, f"the base_model {base} is not among the slice's sources; add it, without parameters"


def _given_twice(recipe: Recipe, one: Slice, where: str) -> _Mistakes:
    """The layers of a model that a slice has more than once: one model may give several of its layers, each once."""
    given = [(source.model, source.layer_range) for source in one.sources]
    for model, (start, end) in sorted({part for part in given if given.count(part) > 1}):
        if recipe.slices:
            yield where, f"layers [{start}, {end}) of {model} take part twice; give them once"
        else:
            yield where, f"{model} takes part twice; give it once"


def _range_mistakes(one: Slice, where: str, layers: Mapping[str, int], *, empty: bool) -> _Mistakes:
    """What is wrong with which layers a slice takes; `empty`: it may take none."""
    for j, source in enumerate(one.sources):
        start, end = source.layer_range
        held = layers.get(source.model)
        if not 0 <= start <= end or (held is not None and end > held):
            within = f" within the {held} layers of {source.model}" if held is not None else ""
            yield f"{where}.sources[{j}].layer_range", f"[{start}, {end}) is not a range{within}"
        elif start == end and not empty:
            message = f"[{start}, {end}) has no layers, and between others a slice gives nothing else; leave it out"
            yield f"{where}.sources[{j}].layer_range", message
    if len({_length(source) for source in one.sources}) > 1:
        yield where, "all sources of a slice must give as many layers as one another"


def _length(source: SliceSource) -> int:
    return source.layer_range[1] - source.layer_range[0]
