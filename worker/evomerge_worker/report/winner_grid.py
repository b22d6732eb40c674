"""The winner's parameters as a grid: parts of the model down, parameters and models across."""

from collections.abc import Mapping
from dataclasses import dataclass

from evomerge_contract.manifest import Parameter
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import Layout
from evomerge_contract.text import score
from evomerge_worker.report.colour import Shade, shade
from evomerge_worker.report.winner_values import SHARED, parameters, places


@dataclass(frozen=True)
class Cell:
    """A value as text, and the class of its colour."""

    text: str
    css: str


@dataclass(frozen=True)
class Grid:
    """`columns` maps a parameter to its models; each row is a part of the model with its cells in that order."""

    columns: dict[str, list[str]]
    legends: dict[str, Shade]
    rows: list[tuple[str, list[Cell | None]]]


def winner_grid(recipe: Recipe, layout: Layout, searched: Mapping[str, Parameter], models: int) -> Grid:
    """The grid of a recipe; `searched` are the parameters of its space, and there are `models` in the pool."""
    found = places(recipe, layout)
    columns = parameters(found)
    keys = [(parameter, model) for parameter, names in columns.items() for model in names]
    shades = {
        name: shade(searched.get(name), models, [v for p in found for (n, _), v in p.values.items() if n == name])
        for name in columns
    }

    def cell(key: tuple[str, str], value: float | None) -> Cell | None:
        return None if value is None else Cell(score(value, 3), shades[key[0]].css(value))

    return Grid(
        columns={p: ["all models" if m == SHARED else m for m in names] for p, names in columns.items()},
        legends=shades,
        rows=[(place.label, [cell(key, place.values.get(key)) for key in keys]) for place in found],
    )
