"""Recipes as people write them: every form that mergekit takes, and every key that is not done here by its name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge_contract.recipe import Filtered, Recipe
from evomerge_worker.errors import InputError
from evomerge_worker.recipe_file import parse_recipe, read_recipe

LINEAR = {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}]}


def _parameter(text: str) -> Any:
    parameters = parse_recipe(LINEAR | {"parameters": yaml.safe_load(text)}).parameters
    assert parameters is not None
    return next(iter(parameters.values()))


def _refusals(document: Any) -> list[tuple[str, str]]:
    with pytest.raises(InputError) as caught:
        parse_recipe(document)
    return [(p.path, p.message) for p in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("weight: 1e-5", 1e-5),  # to YAML this is text
        ("weight: '0.5'", 0.5),
        ("weight: [1e-1, 1]", [0.1, 1.0]),
        ("normalize: false", False),
        ("normalize: 'off'", False),
        ("normalize: 'True'", True),
        ("normalize: [true, 'no']", [1.0, 0.0]),
        ("weight: {filter: mlp, value: 0.5}", [Filtered(filter="mlp", value=0.5)]),
        ("weight: {value: [0, '1']}", [Filtered(value=[0.0, 1.0])]),
        ("weight: [{filter: mlp, value: 'yes'}, {value: 1}]", [Filtered(filter="mlp", value=True), Filtered(value=1)]),
    ],
)
def test_values_are_what_mergekit_takes_them_for(text: str, value: Any) -> None:
    assert repr(_parameter(text)) == repr(value)


def test_a_dtype_may_bear_the_name_of_torch() -> None:
    recipe = parse_recipe(LINEAR | {"dtype": "torch.float32", "out_dtype": "torch.bfloat16"})
    assert (recipe.dtype, recipe.out_dtype) == ("float32", "bfloat16")


def test_a_recipe_reads_in_mergekit_as_it_was_written() -> None:
    recipe = parse_recipe(LINEAR | {"parameters": {"weight": {"filter": "mlp", "value": "1e-5"}, "normalize": "no"}})
    assert recipe.plain()["parameters"] == {"weight": [{"filter": "mlp", "value": 1e-05}], "normalize": False}
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        ({"modules": {}}, "recipe.modules", "is not done here: a model of several stacks of layers"),
        ({"chat_template": "auto"}, "recipe.chat_template", "is not done here: the result has the chat template"),
        (
            {"slices": [{"sources": [{"model": "a", "layer_range": [0, 1]}], "residual_weight": 0.5}]},
            "recipe.slices[0].residual_weight",
            "is not done here: mergekit reads it and does nothing with it; leave it out",
        ),
        ({"base_modle": "a"}, "recipe.base_modle", "is not a key that is known here; did you mean base_model?"),
        (
            {"models": [{"model": "a", "weight": 1}]},
            "recipe.models[0].weight",
            "is not a key that is known here; allowed: model, parameters",
        ),
        ({"models": [{"model": {"model": {"path": "a"}}}]}, "recipe.models[0].model", "a model is named by one text"),
        ({"base_model": {"model": "a", "lora": "b"}}, "recipe.base_model", "a model is named by one text"),
        ({"dtype": "float64"}, "recipe.dtype", "\"float64\" is not known; allowed: 'float32', 'float16' or"),
        (
            {"parameters": {"weight": "much"}},
            "recipe.parameters.weight",
            '"much" is neither a number, nor true or false, nor a gradient (a list of numbers), nor a filter',
        ),
        (
            {"models": [{"model": "a", "parameters": {"weight": [{"filter": "mlp"}, 1]}}]},
            "recipe.models[0].parameters.weight",
            '[{"filter": "mlp"}, 1] is neither',
        ),
        (
            {"slices": [{"sources": [{"model": "a"}]}]},
            "recipe.slices[0].sources[0].layer_range",
            "is missing",
        ),
        *(
            (
                {"slices": [{"sources": [{"model": "a", "layer_range": given}]}]},
                "recipe.slices[0].sources[0].layer_range",
                f"{shown} is not two whole numbers: the first layer, and the one behind the last",
            )
            for given, shown in [([0], "[0]"), ("0-4", '"0-4"'), ([0, 2.5], "[0, 2.5]"), ([0, 1, 2], "[0, 1, 2]")]
        ),
        (
            {"models": [{"model": "a", "parameters": yaml.safe_load("{on: x, weight: 1}")}]},
            "recipe.models[0].parameters.True",
            "its name is no text to YAML, as on, off, yes, no and numbers are none; put it in quotes",
        ),
        (
            {"models": [{"model": "a", "parameters": yaml.safe_load("weight: {2001-01-01: 1}")}]},
            "recipe.models[0].parameters.weight",
            "{datetime.date(2001, 1, 1): 1} is neither a number",
        ),
    ],
)
def test_what_is_not_done_is_refused_by_its_key(keys: dict[str, Any], path: str, message: str) -> None:
    ((found, words),) = _refusals({"merge_method": "linear"} | keys)
    assert found == path
    assert words.startswith(message)


@pytest.mark.parametrize(
    ("keys", "mistake"),
    [
        (
            {"tokenizer_source": "union", "tokenizer": {"source": "union"}},
            ("recipe", "give either tokenizer_source or tokenizer, not both"),
        ),
        (
            {"tokenizer": {"tokens": {"x": {"source": "a"}}}},
            (
                "recipe.tokenizer.tokens",
                "embeddings of single tokens cannot be chosen here; leave tokens out, and each token has the embedding "
                "of the models that know it",
            ),
        ),
    ],
)
def test_what_is_refused_as_a_whole_is_not_repeated(keys: dict[str, Any], mistake: tuple[str, str]) -> None:
    assert _refusals(LINEAR | keys) == [mistake]


def test_what_is_left_without_unknown_keys_is_a_recipe_to_look_at(tmp_path: Path) -> None:
    """So that a person hears of its models at the same time."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(LINEAR | {"dtype": "float64", "modules": {}, "slices": []}))
    recipe, problems = read_recipe(path)
    assert recipe == parse_recipe(LINEAR | {"slices": []})
    assert [problem.path for problem in problems] == ["recipe.dtype", "recipe.modules"]
    path.write_text(yaml.safe_dump({"models": [{"model": 7}], "dtype": "float64"}))
    recipe, problems = read_recipe(path)
    assert recipe is None
    assert [problem.path for problem in problems] == ["recipe.merge_method", "recipe.models[0].model", "recipe.dtype"]


def test_all_mistakes_are_told_at_once() -> None:
    found = _refusals({"modules": {}, "models": [{"parameters": {"weight": "x"}}]})
    assert [path for path, _ in found] == [
        "recipe.merge_method",
        "recipe.models[0].model",
        "recipe.models[0].parameters.weight",
        "recipe.modules",
    ]


@pytest.mark.parametrize("document", [None, [], "linear"])
def test_another_document_is_no_recipe(document: Any) -> None:
    assert _refusals(document) == [
        ("recipe", "is not a mergekit configuration: expected merge_method and models or slices")
    ]
