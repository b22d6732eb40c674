"""Recipes in the forms that people write them in: both sides read the same parameters out of one text."""

from typing import Any

import pytest
import yaml

from evomerge_worker.merge import plan_merge
from evomerge_worker.recipe_file import parse_recipe
from evomerge_worker.shards import Checkpoint
from oracle import Oracle, OracleError
from tiny_models import Tiny

RECIPES = {
    "numbers as text": """
        merge_method: ties
        base_model: BASE
        models: [{model: A, parameters: {weight: 1e-3, density: '0.5'}}, {model: B, parameters: {weight: [1e-1, 1]}}]
        parameters: {lambda: 1e0}
        """,
    "truth as text": """
        merge_method: ties
        base_model: BASE
        models: [{model: A, parameters: {weight: 1}}, {model: B, parameters: {weight: true}}]
        parameters: {normalize: 'no', rescale: ['off', 'on'], int8_mask: 1}
        """,
    "one filter without a list": """
        merge_method: linear
        models: [{model: A, parameters: {weight: {filter: mlp, value: [0, 1]}}}, {model: B}]
        parameters: {weight: {value: 0.25}, normalize: {filter: norm, value: 0}}
        """,
    "a module called default": """
        merge_method: ties
        base_model: BASE
        modules:
          default:
            slices:
              - sources:
                  - {model: A, layer_range: [0, 4], parameters: {density: 0.5, weight: [{filter: mlp, value: 0.7}]}}
                  - {model: BASE, layer_range: [0, 4]}
            parameters: {weight: [{filter: attn, value: 0.2}], normalize: false}
        parameters: {weight: [0.3, 0.9], normalize: true, lambda: 0.5}
        """,
    "weights for model_stock": """
        name: mix
        merge_method: model_stock
        base_model: BASE
        models: [{model: A, parameters: {weight: 1, density: 0.5}}, {model: B, parameters: {weight: 1}}]
        parameters: {normalize: true, int8_mask: true}
        random_seed: 0
        """,
    "int8_mask and density for linear": """
        merge_method: linear
        models: [{model: A, parameters: {weight: 0.3, density: 0.5}}, {model: B, parameters: {weight: 0.2}}]
        parameters: {int8_mask: true}
        normalize: true
        int8_mask: true
        embed_slerp: true
        """,
    "normalize for sce": """
        merge_method: sce
        base_model: BASE
        models: [{model: A}, {model: B, parameters: {weight: 0.5}}]
        parameters: {normalize: true, select_topk: 0.5}
        """,
    "anchors in helper keys": """
        model_1: &first A
        scales: &low {weight: [0.1, 0.4], density: 0.7}
        merge_method: dare_ties
        base_model: BASE
        models:
          - {model: *first, parameters: *low}
          - {model: B, parameters: {<<: *low, weight: 0.9}}
        """,
    "slices with a residual weight and models as mappings": """
        merge_method: slerp
        base_model: {model: {path: A, revision: null}, lora: null}
        slices:
          - sources: [{model: A, layer_range: [0, 4]}, {model: {model: B}, layer_range: [0, 4]}]
            residual_weight: 0.5
            note: x
        parameters: {t: [{filter: self_attn, value: [0, 0.5], note: x}, {value: 0.5}], embed_slerp: true}
        """,
}
"""What mergekit passes over there is passed over here."""


def _with_paths(text: str, sources: dict[str, Checkpoint]) -> Any:
    for name, checkpoint in zip(("BASE", "A", "B"), sources.values(), strict=True):
        text = text.replace(name, str(checkpoint.folder))
    return yaml.safe_load(text)


@pytest.fixture(scope="module")
def sources(tiny: Tiny) -> dict[str, Checkpoint]:
    folders = [tiny("llama", seed=seed) for seed in range(3)]
    return {str(folder): Checkpoint.open(folder, str(folder)) for folder in folders}


@pytest.mark.parametrize("name", RECIPES)
def test_both_read_the_same_parameters(oracle: Oracle, sources: dict[str, Checkpoint], name: str) -> None:
    document = _with_paths(RECIPES[name], sources)
    theirs = oracle(ask="resolve", recipe=document)
    recipe, problems, _ = parse_recipe(document)
    assert recipe is not None
    assert not problems
    ours = plan_merge(recipe, sources)
    assert sorted(plan.name for plan in ours) == sorted(theirs)
    for plan in ours:
        assert dict(plan.shared) == theirs[plan.name]["shared"]
        for item in plan.inputs:
            assert dict(item.values) == theirs[plan.name]["per_model"][item.model]


@pytest.mark.parametrize(
    "parameters", ["{weight: much}", "{weight: {filter: mlp}}", "{weight: [{value: 1}, 2]}", "{weight: {value: {}}}"]
)
def test_both_refuse_the_same_parameters(oracle: Oracle, sources: dict[str, Checkpoint], parameters: str) -> None:
    text = f"{{merge_method: linear, models: [{{model: A}}, {{model: B}}], parameters: {parameters}}}"
    document = _with_paths(text, sources)
    with pytest.raises(OracleError):
        oracle(ask="resolve", recipe=document)
    assert [problem.path for problem in parse_recipe(document).problems] == ["recipe.parameters.weight"]
