"""Recipes as people write them: every form that mergekit takes, and every key that is not done here by its name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge_contract.recipe import Filtered, Recipe
from evomerge_contract.yaml_document import read_document
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
        (
            {"models": [{"model": "a", "layer_range": [0, 4]}]},
            "recipe.models[0].layer_range",
            "belongs to slices[].sources[]; to merge some layers of a model, write slices instead of models",
        ),
        (
            {"tokenizer": {"sorce": "union"}},
            "recipe.tokenizer.sorce",
            "is not a key that is known here; did you mean source?",
        ),
        (
            {"tokenizer": {"vocabulary": "union"}},
            "recipe.tokenizer.vocabulary",
            "is not a key that is known here; allowed: source, pad_to_multiple_of, tokens",
        ),
        (
            {"models": ["a"]},
            "recipe.models[0]",
            '"a" is not a set of keys with values; write "- model: a" for each model',
        ),
        ({"models": "a"}, "recipe.models", '"a" is not a list; write "- model: a" for each model'),
        ({"slices": [{"sources": []}]}, "recipe.slices[0].sources", 'is an empty list; write "- model: NAME" with its'),
        (
            {"tokenizer": "union"},
            "recipe.tokenizer",
            '"union" is not a set of keys with values; write "tokenizer_source: union", or "source: union" below',
        ),
        (
            {"tokenizer": {"pad_to_multiple_of": 0}},
            "recipe.tokenizer.pad_to_multiple_of",
            "0 is not a whole number of 1",
        ),
        ({"parameters": ["weight"]}, "recipe.parameters", '["weight"] is not a set of keys with values; write a line'),
        ({"base_model": yaml.safe_load("2024-12-01")}, "recipe.base_model", "2024-12-01 is no text to YAML; put it in"),
        ({"models": [{"model": None}]}, "recipe.models[0].model", "has no value; write one, or leave the key out"),
        *(
            (
                {"models": [{"model": "a", "parameters": {name: []}}]},
                f"recipe.models[0].parameters.{name}",
                "is an empty list; give a number or a list of numbers, or leave the parameter out",
            )
            for name in ("density", "weight")
        ),
        ({"parameters": {"weight": {"value": []}}}, "recipe.parameters.weight", '{"value": []} is neither a number'),
        (
            {"parameters": yaml.safe_load("2001-01-01: 1")},
            "recipe.parameters.2001-01-01",
            "its name is no text to YAML, as on, off, yes, no, numbers and dates are none; put it in quotes",
        ),
        ({"parameters": yaml.safe_load("weight: &x [*x]")}, "recipe.parameters.weight", "[[...]] is neither a number"),
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
            "its name is no text to YAML, as on, off, yes, no, numbers and dates are none; put it in quotes",
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


def test_a_faulty_parameter_does_not_hide_its_models(tmp_path: Path) -> None:
    """It has a value that is right, or it would also count as missing."""
    models = [{"model": "a", "parameters": {"weight": "much", "density": []}}, {"model": "b"}]
    recipe, problems = _read("merge_method: ties\n" + yaml.safe_dump({"models": models}), tmp_path)
    assert recipe is not None
    assert recipe.named_models == ["a", "b"]
    assert [one.parameters for one in recipe.models or []] == [{"weight": 1.0, "density": 1.0}, None]
    assert [path for path, _ in problems] == [f"recipe.models[0].parameters.{name}" for name in ("density", "weight")]


def test_one_mistake_that_an_alias_repeats_is_told_at_both_places(tmp_path: Path) -> None:
    text = "merge_method: linear\nmodels: [{model: a, parameters: &p {weight: much}}, &b {model: b, wieght: 1}, *b]"
    recipe, problems = _read(text, tmp_path)
    assert recipe is not None
    assert [path for path, _ in problems] == [
        "recipe.models[0].parameters.weight",
        "recipe.models[1].wieght",
        "recipe.models[2].wieght",
    ]


def _read(text: str, folder: Path) -> tuple[Recipe | None, list[tuple[str, str]]]:
    (folder / "recipe.yaml").write_text(text)
    recipe, problems = read_recipe(folder / "recipe.yaml")
    return recipe, [(p.path, p.message) for p in problems]


def test_a_key_given_twice_is_told_with_its_lines(tmp_path: Path) -> None:
    """YAML would take the last without a word; what is merged in by << may be given anew."""
    text = """merge_method: linear
models:
- {model: a, parameters: &p {weight: 0.1, 'weight': 0.2}}
- {model: b, parameters: {<<: *p, weight: 0.3}}
merge_method: slerp
"""
    recipe, problems = _read(text, tmp_path)
    assert recipe is not None
    assert problems == [
        ("recipe.models[0].parameters.weight", "is given in line 3 and again in line 3; leave one out"),
        ("recipe.merge_method", "is given in line 1 and again in line 5; leave one out"),
    ]


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("models: [{model: 2024-13-01}]", "recipe.models[0].model", "2024-13-01 in line 1 looks like a date or number"),
        ("\n2024-13-01: a", "recipe.2024-13-01", "2024-13-01 in line 2 looks like a date or number"),
        ("dtype: !!bool maybe", "recipe.dtype", "maybe in line 1 looks like"),
        ("parameters: &x {weight: [1, *x]}", "recipe.parameters.weight[1]", "holds itself by an alias"),
        ("models: " + "[" * 5000, "recipe", "is nested too deeply"),
        ("models: [", "{}", "cannot be read as YAML"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_sentence(text: str, path: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        _read(text, tmp_path)
    ((found, message),) = [(p.path, p.message) for p in caught.value.problems]
    assert found == path.format(tmp_path / "recipe.yaml")
    assert message.startswith(words)
    assert "\n" not in message


def test_aliases_of_aliases_are_looked_at_once() -> None:
    """Ten to the twelfth places, if each were followed."""
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 13)]
    document, twice = read_document(yaml.SafeLoader("\n".join(["a0: &a0 [1]", *lines, "a0: 2"])), "")
    assert document["a0"] == 2
    assert [path for path, _ in twice] == ["a0"]


def test_a_manifest_is_no_recipe() -> None:
    (mistake,) = _refusals({"apiVersion": "evomerge.dev/v1alpha1", "kind": "EvoMerge", "spec": {"models": []}})
    assert mistake == ("recipe", "is the manifest of a search, not a recipe; run it with evomerge run")


def test_models_are_renamed_wherever_they_are_named() -> None:
    sources = [{"model": "a", "layer_range": [0, 1]}, {"model": "b", "layer_range": [0, 1]}]
    recipe = {"merge_method": "ties", "base_model": "a", "slices": [{"sources": sources, "base_model": "b"}]}
    recipe |= {"tokenizer_source": "a", "parameters": {"weight": float("nan")}}
    renamed = parse_recipe(recipe).renamed({"a": "x", "union": "y"})
    assert renamed.named_models == ["x", "b"]
    assert renamed.vocabulary == "x"


@pytest.mark.parametrize(
    ("vocabulary", "renamed"),
    [
        ({"tokenizer_source": "a"}, {"tokenizer_source": "x"}),
        ({"tokenizer": {"source": "a"}}, {"tokenizer": {"source": "x"}}),
        (
            {"tokenizer": {"source": "a", "pad_to_multiple_of": 8}},
            {"tokenizer": {"source": "x", "pad_to_multiple_of": 8}},
        ),
        ({"tokenizer_source": "union"}, {"tokenizer_source": "union"}),
        ({"tokenizer": {"source": "base"}}, {"tokenizer": {"source": "base"}}),
        ({}, {}),
    ],
)
def test_the_vocabulary_is_renamed_in_both_ways_of_writing_it(
    vocabulary: dict[str, Any], renamed: dict[str, Any]
) -> None:
    plain = parse_recipe(LINEAR | vocabulary).renamed({"a": "x", "union": "y"}).plain()
    assert {key: value for key, value in plain.items() if key.startswith("tokenizer")} == renamed


def test_a_vocabulary_called_base_is_renamed_with_the_model_of_that_name() -> None:
    assert parse_recipe(LINEAR | {"tokenizer": {"source": "base"}}).renamed({"base": "s3://b"}).vocabulary == "s3://b"


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
