"""Several recipes in one file, as mergekit-multi reads them: in which order they are merged, and what keeps them from
it."""

import re
from collections.abc import Mapping, Sequence

from evomerge_contract.recipe import Recipe
from evomerge_contract.report import Problem
from evomerge_worker.errors import InputError
from evomerge_worker.recipe_file import Part

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def in_order(parts: Sequence[Part]) -> list[Part]:
    """The parts in the order in which they are merged: each after those whose results it uses, the final one last.

    What no other part uses is not merged: it would be thrown away.

    Raises:
        InputError: a name is missing, none, or given twice, or parts use one another in a circle.
    """
    if len(parts) == 1:
        return list(parts)
    problems = [*_misnamed(parts)]
    if problems:
        raise InputError(*problems)
    by_name = {part.name: part for part in parts}
    found: dict[str | None, Part] = {}
    _visit(None, by_name, found, [])
    return list(found.values())


def used(recipe: Recipe, names: Mapping[str | None, object]) -> list[str]:
    """Which of these names a recipe means as models, with an adapter perhaps."""
    models = (model.partition("+")[0] for model in recipe.named_models)
    return list(dict.fromkeys(model for model in models if model in names))


def _misnamed(parts: Sequence[Part]) -> list[Problem]:
    places = [f"recipe[{number}].name" for number in range(len(parts))]
    first: dict[str | None, str] = {}
    problems = []
    for part, place in zip(parts, places, strict=True):
        if part.name is not None and not _NAME.fullmatch(part.name):
            said = f'"{part.name}" is no name of a recipe; letters, digits, dots, dashes and underscores are allowed'
            problems.append(Problem(path=place, message=said))
        elif part.name in first and part.name is not None:
            said = f'"{part.name}" is {first[part.name]} too; names must differ'
            problems.append(Problem(path=place, message=said))
        elif part.name in first:
            said = f"is missing, and {first[None]} too: only the last merge, whose result is wanted, has no name"
            problems.append(Problem(path=place, message=said))
        first.setdefault(part.name, place)
    if None not in first and not problems:
        said = f"all {len(parts)} recipes have a name; the last merge, whose result is wanted, has none"
        problems.append(Problem(path="recipe", message=said))
    return problems


def _visit(
    name: str | None, by_name: Mapping[str | None, Part], found: dict[str | None, Part], above: list[str | None]
) -> None:
    if name in found:
        return
    if name in above:
        circle = " uses ".join(str(one) for one in [*above[above.index(name) :], name])
        raise InputError.at("recipe", f"{circle}: a recipe cannot use its own result")
    part = by_name[name]
    for other in used(part.written.recipe, by_name) if part.written.recipe is not None else ():
        _visit(other, by_name, found, [*above, name])
    found[name] = part
