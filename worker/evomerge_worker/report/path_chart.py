"""The winner's path through the layers of its models: which layer of which model stands where."""

from markupsafe import Markup

from evomerge_contract.recipe import Recipe
from evomerge_contract.text import count
from evomerge_worker.report.axes import text
from evomerge_worker.report.svg import element, number, picture

LEFT, TOP = 110.0, 16.0
STEP, LANE, GAP = 14.0, 90.0, 26.0
"""Pixels of a layer of the result, of a model, and between two models."""


def path_chart(recipe: Recipe) -> Markup:
    """Each layer of the result from left to right, in the lane of its model, the higher the deeper it lies there."""
    path = [(s.model, layer) for one in recipe.slices or [] for s in one.sources for layer in range(*s.layer_range)]
    models = list(dict.fromkeys(model for model, _ in path))
    deepest = max(1, *(layer for _, layer in path))
    bottoms = {model: TOP + LANE + i * (LANE + GAP) for i, model in enumerate(models)}
    points = [(LEFT + i * STEP, bottoms[m] - layer / deepest * LANE) for i, (m, layer) in enumerate(path)]
    right, bottom = LEFT + (len(path) - 1) * STEP + 12, max(bottoms.values()) + 30
    lanes = [
        element("line", class_="grid", x1=LEFT - 6, x2=right, y1=at, y2=at) + text(LEFT - 14, at, model, "label end")
        for model, at in bottoms.items()
    ]
    dots = [
        element("circle", _title(i, layer, model), class_=_kind(model, models), cx=x, cy=y, r=4)
        for i, ((model, layer), (x, y)) in enumerate(zip(path, points, strict=True))
    ]
    line = "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)
    return picture(
        right,
        bottom,
        f"The path of {count(len(path), 'layer')} through {', '.join(models)}.",
        *lanes,
        element("path", class_="slope finalist", d=line),
        *dots,
        text(LEFT, bottom - 6, "the layers of the winner, from first to last", "label"),
    )


def _title(place: int, layer: int, model: str) -> Markup:
    return element("title", f"layer {place}: layer {layer} of {model}")


def _kind(model: str, models: list[str]) -> str:
    return "dot winner" if model == models[0] else "dot finalist"
