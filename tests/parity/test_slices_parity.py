"""Results that are put together from slices, against mergekit on the same recipe."""

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge_contract.recipe import Recipe
from evomerge_worker.merge import Merger, plan_merge
from evomerge_worker.shards import Checkpoint
from oracle import Oracle
from tiny_models import Tiny

Slices = list[dict[str, Any]]


def _sources(tiny: Tiny, family: str) -> dict[str, Checkpoint]:
    """Two models of four layers and one of six, by path, which is what both sides call them."""
    folders = [tiny(family, seed=1), tiny(family, seed=2), tiny(family, seed=3, num_hidden_layers=6)]
    return {str(folder): Checkpoint.open(folder, str(folder)) for folder in folders}


def _slice(parameters: dict[str, Any] | None = None, **ranges: tuple[int, int]) -> dict[str, Any]:
    sources = [{"model": name, "layer_range": list(layers)} for name, layers in ranges.items()]
    return {"sources": sources, "parameters": parameters}


RECIPES: dict[str, dict[str, Any]] = {
    "stacked": {
        "merge_method": "linear",
        "slices": [_slice(a=(0, 3)), _slice(deep=(1, 6)), _slice(b=(1, 4))],
        "parameters": {"weight": 1},
    },
    "gradients over slices": {
        "merge_method": "linear",
        "slices": [
            _slice({"weight": [0.25, 1]}, a=(0, 3), b=(1, 4)),
            _slice({"weight": [{"filter": "mlp", "value": [1, 0.5]}, {"value": 0.75}]}, deep=(2, 6)),
            _slice({"weight": [1, 2, 0.5]}, deep=(0, 2), a=(2, 4)),
        ],
    },
    "a base for each slice": {
        "merge_method": "ties",
        "base_model": "a",
        "slices": [
            _slice({"weight": 0.75, "density": 0.5}, a=(0, 2), b=(1, 3)),
            _slice({"weight": [0.5, 1]}, b=(0, 4), deep=(2, 6)) | {"base_model": "b"},
        ],
    },
    "shallow": {
        "merge_method": "slerp",
        "base_model": "a",
        "slices": [_slice({"t": [0, 1]}, a=(1, 4), b=(0, 3))],
    },
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_slices_give_what_mergekit_gives(oracle: Oracle, tiny: Tiny, tmp_path: Path, family: str, name: str) -> None:
    sources = _sources(tiny, family)
    recipe = _with_paths(RECIPES[name], dict(zip(("a", "b", "deep"), sources, strict=True)))
    oracle(ask="merge", recipe=recipe.plain(), out=str(tmp_path / "out"), masks=None)
    theirs = Checkpoint.open(tmp_path / "out", "theirs")
    ours = dict(Merger(sources, 0).merged(plan_merge(recipe, sources)))
    assert sorted(ours) == theirs.names
    for tensor, other in ((ours[n], theirs.tensor(n)) for n in theirs.names):
        step = torch.finfo(other.dtype).eps * other.double().abs()
        assert bool(((tensor.double() - other.double()).abs() <= step + 1e-7).all())


def _with_paths(recipe: dict[str, Any], paths: dict[str, str]) -> Recipe:
    slices = [
        one
        | {"sources": [source | {"model": paths[source["model"]]} for source in one["sources"]]}
        | ({"base_model": paths[one["base_model"]]} if "base_model" in one else {})
        for one in recipe["slices"]
    ]
    base = {"base_model": paths[recipe["base_model"]]} if "base_model" in recipe else {}
    return Recipe.model_validate(recipe | base | {"slices": slices, "dtype": "float32", "out_dtype": "bfloat16"})
