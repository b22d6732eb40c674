"""Recipes as people write them: every form that mergekit takes, and every key that is not done here by its name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge_contract.recipe import Filtered, Recipe
from evomerge_contract.yaml_document import read_document
from evomerge_worker.errors import InputError
from evomerge_worker.recipe_file import Written, parse_recipe, read_recipes

LINEAR = {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}]}


def _recipe(document: Any) -> Recipe:
    recipe, problems, _ = parse_recipe(document)
    assert recipe is not None
    assert not problems
    return recipe


def only(path: Path) -> Written:
    """What is read of a file with one recipe."""
    [part] = read_recipes(path)
    return part.written


def _parameter(text: str) -> Any:
    parameters = _recipe(LINEAR | {"parameters": yaml.safe_load(text)}).parameters
    assert parameters is not None
    return next(iter(parameters.values()))


def _refusals(document: Any) -> list[tuple[str, str]]:
    return [(p.path, p.message) for p in parse_recipe(document).problems]


def _warnings(document: Any) -> list[tuple[str, str]]:
    recipe, problems, warnings = parse_recipe(document)
    assert recipe is not None
    assert not problems
    return [(p.path, p.message) for p in warnings]


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
    recipe = _recipe(LINEAR | {"dtype": "torch.float32", "out_dtype": "torch.bfloat16"})
    assert (recipe.dtype, recipe.out_dtype) == ("float32", "bfloat16")


def test_a_recipe_reads_in_mergekit_as_it_was_written() -> None:
    recipe = _recipe(LINEAR | {"parameters": {"weight": {"filter": "mlp", "value": "1e-5"}, "normalize": "no"}})
    assert recipe.plain()["parameters"] == {"weight": [{"filter": "mlp", "value": 1e-05}], "normalize": False}
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        (
            {"modules": {"text_decoder": {"models": []}, "vision_tower": {"models": []}}},
            "recipe.modules",
            "is not done here: only models of one module are merged, which mergekit calls default",
        ),
        (
            {"models": [{"model": "a"}], "modules": {"default": {"models": [{"model": "b"}]}}},
            "recipe.modules",
            "give either models or modules, not both",
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
        (
            {"models": [{"model": "a", "parameters": {"weight": []}}]},
            "recipe.models[0].parameters.weight",
            "is an empty list; give a number or a list of numbers, or leave the parameter out",
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
            "belongs to parameters, one level further down; mergekit would pass over it here",
        ),
        (
            {"models": [{"model": "a", "wieght": 1}]},
            "recipe.models[0].wieght",
            "is not a key that is known here; did you mean weight, below parameters?",
        ),
        ({"normalize": False}, "recipe.normalize", "belongs to parameters, one level further down"),
        ({"parameters": {"dtype": "float32"}}, "recipe.parameters.dtype", "belongs to the recipe itself"),
        (
            {"parameters": {"wieght": 1}},
            "recipe.parameters.wieght",
            "is not a parameter of linear; did you mean weight?",
        ),
        (
            {"parameters": {"weight": [{"fitler": "mlp", "value": 1}]}},
            "recipe.parameters.weight[0].fitler",
            "is not a key that is known here; did you mean filter?",
        ),
        *(
            (
                {"models": [{"model": "a", key: "x"}]},
                f"recipe.models[0].{key}",
                f'is a part of the model\'s name; write "model: a{mark}x"; mergekit would pass over it here',
            )
            for key, mark in [("lora", "+"), ("adapter", "+"), ("revision", "@")]
        ),
        (
            {"models": [{"model": "a", "lora": {"path": "org/b", "revision": "main"}}]},
            "recipe.models[0].lora",
            'is a part of the model\'s name; write "model: a+org/b@main"; mergekit would pass over it here',
        ),
        *(
            (keys, f"recipe.{key}", f"is not a key that is known here; did you mean {near}?")
            for keys, key, near in [
                ({"base": "a"}, "base", "base_model"),
                ({"modles": [{"model": "a"}]}, "modles", "models"),
                ({"Base-Model": "a"}, "Base-Model", "base_model"),
                ({"params": {"weight": 1}}, "params", "parameters"),
                ({"method": "ties"}, "method", "merge_method"),
                ({"layers": [{"sources": [{"model": "a", "layer_range": [0, 1]}]}]}, "layers", "slices"),
                ({"models": [{"model": "a"}], "layers": [0, 4]}, "layers", "slices"),
                ({"models": [{"path": "a"}]}, "models[0].path", "model"),
                ({"models": [{"model": "a", "params": {"weight": 1}}]}, "models[0].params", "parameters"),
                (
                    {"slices": [{"sources": [{"model": "a", "layers": [0, 1]}]}]},
                    "slices[0].sources[0].layers",
                    "layer_range",
                ),
                (
                    {"slices": [{"source": [{"model": "a", "layer_range": [0, 1]}]}]},
                    "slices[0].source",
                    "sources",
                ),
                ({"parameters": {"weight": [{"filter": "mlp", "valu": 1}]}}, "parameters.weight[0].valu", "value"),
            ]
        ),
        (
            {"models": [{"model": "a", "layers": [0, 4]}]},
            "recipe.models[0].layers",
            "is not a key that is known here; did you mean layer_range? That belongs to slices[].sources[]; to merge",
        ),
        *(
            ({"dtype": given}, "recipe.dtype", f'"{given}" is not known; did you mean {near}?')
            for given, near in [
                ("bf16", "bfloat16"),
                ("fp16", "float16"),
                ("fp32", "float32"),
                ("BFloat16", "bfloat16"),
                ("flaot32", "float32"),
                ("bfloat", "bfloat16"),
                ("float", "float32"),
            ]
        ),
        ({"pad_to_multiple_of": 64}, "recipe.pad_to_multiple_of", "belongs to tokenizer; mergekit would pass over it"),
        (
            {"models": [{"model": "a", "merge_method": "slerp"}]},
            "recipe.models[0].merge_method",
            "belongs to the recipe itself; mergekit would pass over it here",
        ),
        ({"layer_range": [0, 4]}, "recipe.layer_range", "belongs to slices[].sources[]; to merge some layers"),
        (
            {"tokenizer": {"tokens": ["x"]}},
            "recipe.tokenizer.tokens",
            'is not a set of tokens; write "TOKEN: {source: MODEL}" for each below it',
        ),
        *(
            (
                {"tokenizer": {"tokens": {"parameters": given}}},
                "recipe.tokenizer.tokens.parameters",
                "is not how a token's embedding is chosen; write {source: MODEL}, {source: {kind: zero}} or",
            )
            for given in ({}, "a", {"source": {"kind": "model_token", "model": "a"}}, {"source": "a", "forced": True})
        ),
        (
            {"models": [{"model": {"model": "a", "override_architecture": "b"}}]},
            "recipe.models[0].model",
            "a model is named by one text",
        ),
        ({"base_model": {"lora": "b"}}, "recipe.base_model", "a model is named by one text"),
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
    ],
)
def test_what_is_refused_as_a_whole_is_not_repeated(keys: dict[str, Any], mistake: tuple[str, str]) -> None:
    assert _refusals(LINEAR | keys) == [mistake]


def test_what_is_left_without_unknown_keys_is_a_recipe_to_look_at(tmp_path: Path) -> None:
    """So that a person hears of its models at the same time."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(LINEAR | {"dtype": "float64", "modules": {"a": {}}, "slices": []}))
    recipe, problems, _ = only(path)
    assert recipe == _recipe(LINEAR | {"slices": []})
    assert [problem.path for problem in problems] == ["recipe.modules", "recipe.dtype"]
    path.write_text(yaml.safe_dump({"models": [{"model": 7}], "dtype": "float64"}))
    recipe, problems, _ = only(path)
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
        "recipe.models[1].wieght",
        "recipe.models[2].wieght",
        "recipe.models[0].parameters.weight",
    ]


def _read(text: str, folder: Path) -> tuple[Recipe | None, list[tuple[str, str]]]:
    (folder / "recipe.yaml").write_text(text)
    recipe, problems, _ = only(folder / "recipe.yaml")
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
    document, twice, _ = read_document(yaml.SafeLoader("\n".join(["a0: &a0 [1]", *lines, "a0: 2"])), "")
    assert document["a0"] == 2
    assert [path for path, _ in twice] == ["a0"]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (None, "is not a mergekit configuration: expected merge_method and models or slices"),
        ([], "is not a mergekit configuration"),
        ("linear", "is not a mergekit configuration"),
        (
            {"apiVersion": "evomerge.dev/v1alpha1", "kind": "EvoMerge", "spec": {"models": []}},
            "is the manifest of a search, not a recipe; run it with evomerge run",
        ),
        (
            {"base_model": "a", "gate_mode": "hidden", "experts": [{"source_model": "b", "positive_prompts": ["x"]}]},
            "is a configuration of mergekit-moe, which puts models side by side as experts behind a router; here",
        ),
        (
            {"genome": {"models": ["a"], "merge_method": "ties"}, "tasks": ["gsm8k"]},
            "is a configuration of mergekit-evolve; write a manifest for evomerge run: models go to spec.models",
        ),
        (
            {"pop_size": 10, "n_iter": 10, "run_id": "x", "models": {"ro": "a"}, "base_model": "b"},
            "is a configuration of mergenetic; write a manifest for evomerge run: models go to spec.models",
        ),
    ],
)
def test_another_document_is_no_recipe(document: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe(document)
    ((path, message),) = [(p.path, p.message) for p in caught.value.problems]
    assert path == "recipe"
    assert message.startswith(words)


@pytest.mark.parametrize(
    ("keys", "path", "why"),
    [
        ({"name": "mix"}, "recipe.name", "a recipe has no such key there"),
        ({"random_seed": 0}, "recipe.random_seed", "a recipe has no such key there"),
        ({"embed_slerp": False}, "recipe.embed_slerp", "a recipe has no such key there"),
        ({"int8_mask": True}, "recipe.int8_mask", "a recipe has no such key there"),
        ({"normalize": True}, "recipe.normalize", "a recipe has no such key there"),  # as it is anyway
        ({"parameters": {"int8_mask": True}}, "recipe.parameters.int8_mask", "linear has no parameter int8_mask"),
        ({"parameters": {"density": [0.5, "x"]}}, "recipe.parameters.density", "linear has no parameter density"),
        (
            {"models": [{"model": "a", "parameters": {"weight": 1, "normalize": True}}]},
            "recipe.models[0].parameters.normalize",
            "beside a model, normalize has no effect",
        ),
        (
            {"models": [{"model": "a", "parameters": {"weight": {"value": 1, "note": "x"}}}]},
            "recipe.models[0].parameters.weight.note",
            "a recipe has no such key there",
        ),
        ({"tokenizer": {"source": "a", "vocabulary": "x"}}, "recipe.tokenizer.vocabulary", "a recipe has no such key"),
        (
            {"models": [], "slices": [{"sources": [{"model": "a", "layer_range": [0, 1]}], "residual_weight": 0.5}]},
            "recipe.slices[0].residual_weight",
            "it reads the key and does nothing with it",
        ),
    ],
)
def test_what_mergekit_passes_over_is_passed_over_with_a_warning(keys: dict[str, Any], path: str, why: str) -> None:
    ((found, message),) = _warnings(LINEAR | keys)
    assert found == path
    assert message.startswith(f"is passed over, as mergekit does: {why}")
    dumped = _recipe(LINEAR | keys).plain()
    assert path.rpartition(".")[2] not in yaml.safe_dump(dumped)


def test_an_origin_is_refused_where_no_method_scales_about_it() -> None:
    """mergekit passes over it everywhere; who writes it means another result."""
    ((path, message),) = _refusals(LINEAR | {"parameters": {"weight": 1, "scale_origin": -1}})
    assert path == "recipe.parameters.scale_origin"
    assert message == "is a parameter of passthrough alone, and linear would do without it; leave it out"


def test_a_key_is_warned_of_once_however_often_it_stands() -> None:
    models = [{"model": name, "parameters": {"weight": 1}} for name in "abc"]
    ((path, message),) = _warnings({"merge_method": "model_stock", "base_model": "d", "models": models})
    assert path == "recipe.models[0].parameters.weight"
    assert message.endswith("model_stock has no parameter weight (and in 2 more places)")


def test_a_key_that_only_holds_what_others_use_is_never_taken_for_a_slip(tmp_path: Path) -> None:
    text = "model: &model a\nmodels1: b\nmerge_method: linear\nmodels: [{model: *model}]\n"
    (tmp_path / "recipe.yaml").write_text(text)
    recipe, problems, warnings = only(tmp_path / "recipe.yaml")
    assert recipe is not None
    assert recipe.named_models == ["a"]
    assert [p.path for p in warnings] == ["recipe.model"]
    assert [(p.path, p.message) for p in problems] == [
        ("recipe.models1", "is not a key that is known here; did you mean models?")
    ]


def test_a_misspelt_key_is_read_as_what_it_was_meant_to_be() -> None:
    """It does not also count as missing, and what stands below it is looked at."""
    document = {"method": "Linear", "modles": [{"path": "a", "wieght": 1}, {"model": "b", "params": {"wieght": 1}}]}
    recipe, problems, _ = parse_recipe(document)
    assert recipe is not None
    assert recipe.named_models == ["a", "b"]
    assert [one.parameters for one in recipe.models or []] == [{"weight": 1.0}, {"weight": 1.0}]
    assert [p.path for p in problems] == [
        "recipe.method",
        "recipe.modles",
        "recipe.models[0].path",
        "recipe.models[0].wieght",
        "recipe.models[1].params",
        "recipe.models[1].parameters.wieght",
    ]


@pytest.mark.parametrize(
    ("model", "where"),
    [
        ({"wieght": [{"filter": "mlp", "valu": 1}]}, "recipe.models[0].wieght"),
        ({"parameters": {"wieght": [{"filter": "mlp", "valu": 1}]}}, "recipe.models[0].parameters.wieght"),
        ({"weight": [{"filter": "mlp", "valu": 1}]}, "recipe.models[0].weight"),
    ],
)
def test_the_filters_of_a_misspelt_or_misplaced_parameter_are_looked_at(model: dict[str, Any], where: str) -> None:
    recipe, problems, _ = parse_recipe({"merge_method": "linear", "models": [{"model": "a"} | model]})
    assert [problem.path for problem in problems] == [where, f"{where}[0].valu"]
    assert recipe is not None


def test_a_revision_and_an_adapter_beside_a_model_are_told_with_the_whole_name() -> None:
    models = [{"model": "org/a", "revision": "main", "adapter": "b"}]
    _, problems, _ = parse_recipe({"merge_method": "linear", "models": models})
    assert [problem.path for problem in problems] == ["recipe.models[0].revision", "recipe.models[0].adapter"]
    assert all('write "model: org/a@main+b"' in problem.message for problem in problems)


def test_a_model_without_an_adapter_or_revision_may_say_so() -> None:
    assert [path for path, _ in _warnings(LINEAR | {"models": [{"model": "a", "revision": None}]})] == [
        "recipe.models[0].revision"
    ]


def test_a_misplaced_parameter_does_not_also_count_as_missing() -> None:
    models = [{"model": "a", "weight": 0.3}, {"model": "b", "parameters": {"wieght": 0.7}}]
    recipe, problems, _ = parse_recipe({"merge_method": "linear", "models": models})
    assert recipe is not None
    assert [one.parameters for one in recipe.models or []] == [{"weight": 0.3}, {"weight": 0.7}]
    assert len(problems) == 2


def test_a_module_called_default_is_the_recipe_itself() -> None:
    """Its parameters go before the recipe's, and where no filter of them matches, the recipe's count."""
    module = {"models": [{"model": "a"}], "parameters": {"weight": [{"filter": "mlp", "value": 1}], "normalize": False}}
    outer = {"weight": [0.2, 0.4], "normalize": True}
    recipe = _recipe({"merge_method": "linear", "modules": {"default": module}, "parameters": outer})
    assert recipe.plain() == {
        "merge_method": "linear",
        "models": [{"model": "a"}],
        "parameters": {"weight": [{"filter": "mlp", "value": 1.0}, {"value": [0.2, 0.4]}], "normalize": False},
    }


@pytest.mark.parametrize(
    "modules",
    [{"a": {"models": []}, "b": {"models": []}}, {"default": None}, [{"default": {"models": [{"model": "a"}]}}]],
)
def test_modules_that_are_refused_do_not_also_count_as_missing_models(modules: Any) -> None:
    recipe, problems, _ = parse_recipe({"merge_method": "linear", "modules": modules})
    assert recipe is None
    assert [problem.path for problem in problems] == ["recipe.modules"]


def test_a_single_module_under_another_name_is_looked_at_all_the_same() -> None:
    module = {"models": [{"model": "a", "parameters": {"weight": "much"}}]}
    recipe, problems, _ = parse_recipe({"merge_method": "linear", "modules": {"defualt": module}})
    assert recipe is not None
    assert recipe.named_models == ["a"]
    assert [problem.path for problem in problems] == ["recipe.modules", "recipe.models[0].parameters.weight"]


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({"model": "a"}, "a"),
        ({"model": "a", "lora": "b"}, "a+b"),
        ({"model": {"path": "a"}}, "a"),
        ({"model": {"path": "org/a", "revision": "main"}, "lora": {"path": "b", "revision": None}}, "org/a@main+b"),
    ],
)
def test_a_model_written_as_a_mapping_is_named_by_the_text_for_it(model: Any, text: str) -> None:
    assert _recipe(LINEAR | {"models": [{"model": model}], "base_model": model}).named_models == [text]


def test_a_file_may_hold_several_recipes_and_empty_documents_are_none(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        f"---\nname: x\nwieght: 1\n{yaml.safe_dump(LINEAR)}---\nmerge_method: slerp\n---\n"
    )
    first, last = read_recipes(tmp_path / "r.yaml")
    assert (first.name, last.name) == ("x", None)
    assert first.written.recipe is not None
    assert [p.path for p in first.written.problems] == ["recipe[0].wieght"]
    assert [p.path for p in last.written.problems] == []
    with pytest.raises(InputError, match=r"recipe\[1\]: is not a mergekit configuration"):
        _read(f"{yaml.safe_dump(LINEAR)}---\n[1]\n", tmp_path)
    assert _read(f"---\n{yaml.safe_dump(LINEAR)}\n---\n", tmp_path)[1] == []


def test_a_token_may_have_another_tokens_embedding_or_none() -> None:
    token = {"kind": "model_token", "model": "a", "token_id": 3}
    tokens = {"x": {"source": "a", "force": True}, "y": {"source": {"kind": "zero"}}, "z": {"source": token}}
    recipe = _recipe(LINEAR | {"tokenizer": {"source": "union", "tokens": tokens}})
    assert recipe.tokenizer is not None
    assert [given.model for given in (recipe.tokenizer.tokens or {}).values()] == ["a", None, "a"]
    renamed = recipe.renamed({"a": "q"}).tokenizer
    assert renamed is not None
    assert [given.model for given in (renamed.tokens or {}).values()] == ["q", None, "q"]


def test_models_are_renamed_wherever_they_are_named() -> None:
    sources = [{"model": "a", "layer_range": [0, 1]}, {"model": "b", "layer_range": [0, 1]}]
    recipe = {"merge_method": "ties", "base_model": "a", "slices": [{"sources": sources, "base_model": "b"}]}
    recipe |= {"tokenizer_source": "a", "parameters": {"weight": float("nan")}}
    renamed = _recipe(recipe).renamed({"a": "x", "union": "y"})
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
    plain = _recipe(LINEAR | vocabulary).renamed({"a": "x", "union": "y"}).plain()
    assert {key: value for key, value in plain.items() if key.startswith("tokenizer")} == renamed


def test_a_vocabulary_called_base_is_renamed_with_the_model_of_that_name() -> None:
    assert _recipe(LINEAR | {"tokenizer": {"source": "base"}}).renamed({"base": "s3://b"}).vocabulary == "s3://b"


def test_all_mistakes_are_told_at_once() -> None:
    found = _refusals({"modules": {"a": {}}, "models": [{"parameters": {"weight": "x"}}]})
    assert [path for path, _ in found] == [
        "recipe.modules",
        "recipe.merge_method",
        "recipe.models[0].model",
        "recipe.models[0].parameters.weight",
    ]
