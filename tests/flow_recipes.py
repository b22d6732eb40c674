"""Recipes of scaled layer paths, for tests: written from what prepare says of how scales are folded."""

from collections.abc import Sequence
from typing import Any

from evomerge_contract.recipe import Recipe
from evomerge_contract.report import Flow

Path = Sequence[tuple[str, int]]
"""The layers of the result in their order, each a model and the number of one of its layers."""


def folded(flow: Flow, path: Path, scales: Sequence[float], **keys: Any) -> Recipe:
    """The recipe of `path`, in which the input of each layer is multiplied by its one of `scales`."""
    slices, product = [], 1.0
    for (model, layer), scale in zip(path, scales, strict=True):
        product *= scale
        factors = dict.fromkeys(flow.divided, 1 / product) | dict.fromkeys(flow.multiplied, product)
        parameters = {"scale": [*_filters(factors), {"value": 1.0}]}
        if flow.about:
            parameters["scale_origin"] = [*_filters(flow.about), {"value": 0.0}]
        slices.append(
            {"sources": [{"model": model, "layer_range": [layer, layer + 1], "parameters": parameters}]},
        )
    return Recipe.model_validate({"merge_method": "passthrough", "base_model": path[0][0], "slices": slices, **keys})


def _filters(values: dict[str, float]) -> list[dict[str, Any]]:
    return [{"filter": tensor, "value": value} for tensor, value in values.items()]
