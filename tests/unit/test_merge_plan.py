"""From a recipe to what is done for each tensor; mergekit itself is asked in tests/parity."""

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge_contract.methods import METHODS
from evomerge_contract.recipe import Recipe, Slice, SliceSource
from evomerge_worker.errors import InputError
from evomerge_worker.merge import Merger, TensorPlan, plan_merge
from evomerge_worker.shards import Checkpoint
from tiny_models import write_tensors

LAYERS = 4


def _tensors(layers: int = LAYERS) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {"model.embed_tokens.weight": torch.randn(6, 4, generator=generator)}
    for i in range(layers):
        tensors[f"model.layers.{i}.attn.weight"] = torch.randn(4, 4, generator=generator)
        tensors[f"model.layers.{i}.mlp.weight"] = torch.randn(4, 4, generator=generator)
    return tensors | {"model.norm.weight": torch.randn(4, generator=generator), "lm_head.weight": torch.randn(6, 4)}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Checkpoint]:
    return {name: _checkpoint(tmp_path / name, name, _tensors()) for name in ("a", "b", "base")}


def _checkpoint(folder: Path, name: str, tensors: dict[str, torch.Tensor], **config: Any) -> Checkpoint:
    config = {"model_type": "llama", "num_hidden_layers": LAYERS, **config}
    return Checkpoint.open(write_tensors(folder, tensors, config=config), name)


def _recipe(**keys: Any) -> Recipe:
    return Recipe.model_validate({"merge_method": "linear", **keys})


def _models(**parameters: Any) -> list[dict[str, Any]]:
    return [{"model": name, "parameters": {"weight": value}} for name, value in parameters.items()]


def _weights(plans: list[TensorPlan], model: str) -> dict[str, float]:
    return {plan.name: i.values["weight"] for plan in plans for i in plan.inputs if i.model == model}


def _refusals(recipe: Recipe, sources: dict[str, Checkpoint]) -> dict[str, str]:
    with pytest.raises(InputError) as caught:
        plan_merge(recipe, sources)
    return {p.path: p.message for p in caught.value.problems}


def test_every_tensor_is_planned_once_from_front_to_back(sources: dict[str, Checkpoint]) -> None:
    plans = plan_merge(_recipe(models=_models(a=1, b=1)), sources)
    names = [plan.name for plan in plans]
    assert sorted(names) == sources["a"].names
    assert names[0] == "model.embed_tokens.weight"
    assert set(names[-2:]) == {"model.norm.weight", "lm_head.weight"}
    assert names[1:3] == ["model.layers.0.attn.weight", "model.layers.0.mlp.weight"]


def test_a_gradient_runs_over_the_layers_and_is_taken_at_its_start_outside(sources: dict[str, Checkpoint]) -> None:
    weights = _weights(plan_merge(_recipe(models=_models(a=[0, 1, 4], b=1)), sources), "a")
    assert [weights[f"model.layers.{i}.mlp.weight"] for i in range(4)] == pytest.approx([0, 2 / 3, 2, 4])
    assert weights["model.embed_tokens.weight"] == weights["model.norm.weight"] == weights["lm_head.weight"] == 0


def test_slices_may_share_what_they_say_of_a_source(sources: dict[str, Checkpoint]) -> None:
    """Recipes may be made in Python, of the same parts."""
    parts = [SliceSource(model=model, layer_range=(0, LAYERS)) for model in ("a", "b")]
    slices = [Slice(sources=parts, parameters={"weight": weight}) for weight in (1, 3)]
    weights = _weights(plan_merge(Recipe(merge_method="linear", slices=slices), sources), "a")
    assert [weights[f"model.layers.{i}.mlp.weight"] for i in range(2 * LAYERS)] == [1] * LAYERS + [3] * LAYERS


def test_the_first_matching_filter_wins(sources: dict[str, Checkpoint]) -> None:
    setting = [{"filter": "attn", "value": 2}, {"filter": "layers.1", "value": 3}, {"value": [5, 6]}]
    weights = _weights(plan_merge(_recipe(models=_models(a=setting, b=1)), sources), "a")
    assert weights["model.layers.1.attn.weight"] == 2
    assert weights["model.layers.1.mlp.weight"] == 3
    assert weights["model.layers.3.mlp.weight"] == 6


def test_filters_that_match_nothing_leave_the_word_to_the_next_scope(sources: dict[str, Checkpoint]) -> None:
    models = _models(a=[{"filter": "attn", "value": 2}], b=1)
    weights = _weights(plan_merge(_recipe(models=models, parameters={"weight": 7}), sources), "a")
    assert weights["model.layers.1.attn.weight"] == 2
    assert weights["model.layers.1.mlp.weight"] == 7


def test_a_source_outranks_its_slice_and_a_slice_the_recipe(sources: dict[str, Checkpoint]) -> None:
    slices = [
        {
            "sources": [
                {"model": "a", "layer_range": [0, 2], "parameters": {"weight": 1}},
                {"model": "b", "layer_range": [0, 2]},
            ],
            "parameters": {"weight": 2},
        },
        {"sources": [{"model": "a", "layer_range": [2, 4]}, {"model": "b", "layer_range": [2, 4]}]},
    ]
    plans = plan_merge(_recipe(slices=slices, parameters={"weight": 3}), sources)
    a, b = _weights(plans, "a"), _weights(plans, "b")
    assert (a["model.layers.0.attn.weight"], b["model.layers.0.attn.weight"]) == (1, 2)
    assert (a["model.layers.2.attn.weight"], b["model.layers.2.attn.weight"]) == (3, 3)


def test_embeddings_follow_the_first_slice_and_the_head_the_last(sources: dict[str, Checkpoint]) -> None:
    slices = [
        {"sources": [{"model": "a", "layer_range": [i, i + 1], "parameters": {"weight": i}}]} for i in range(LAYERS)
    ]
    weights = _weights(plan_merge(_recipe(slices=slices), sources), "a")
    assert weights["model.embed_tokens.weight"] == 0
    assert weights["model.norm.weight"] == weights["lm_head.weight"] == LAYERS - 1


def test_a_slice_takes_the_layers_it_names(sources: dict[str, Checkpoint]) -> None:
    """A filter sees the name in the source, which is another one than in the result."""
    setting = [{"filter": "layers.3", "value": 9}, {"value": 1}]
    slices = [
        {"sources": [{"model": "a", "layer_range": [2, 4], "parameters": {"weight": setting}}]},
        {"sources": [{"model": "b", "layer_range": [0, 2], "parameters": {"weight": 1}}]},
    ]
    plans = {plan.name: plan for plan in plan_merge(_recipe(slices=slices), sources)}
    taken = [plans[f"model.layers.{i}.mlp.weight"].inputs[0] for i in range(LAYERS)]
    assert [(i.model, i.tensor) for i in taken] == [
        ("a", "model.layers.2.mlp.weight"),
        ("a", "model.layers.3.mlp.weight"),
        ("b", "model.layers.0.mlp.weight"),
        ("b", "model.layers.1.mlp.weight"),
    ]
    assert taken[1].values == {"weight": 9}


def test_a_base_that_is_not_listed_takes_part_all_the_same(sources: dict[str, Checkpoint]) -> None:
    plan = plan_merge(_recipe(merge_method="ties", models=_models(a=1, b=1), base_model="base"), sources)[0]
    assert plan.base is not None
    assert plan.base.model == "base"
    assert [i.model for i in plan.inputs] == ["a", "b"]


def test_a_base_is_an_origin_where_the_method_has_one_if_it_is_given(sources: dict[str, Checkpoint]) -> None:
    def inputs(method: str, **keys: Any) -> tuple[str | None, list[str]]:
        plan = plan_merge(_recipe(merge_method=method, models=_models(a=1, b=1), **keys), sources)[0]
        return plan.base.model if plan.base else None, [i.model for i in plan.inputs]

    assert inputs("nuslerp", base_model="base") == ("base", ["a", "b"])
    assert inputs("nuslerp") == (None, ["a", "b"])
    assert inputs("multislerp", base_model="a") == ("a", ["b"])
    assert inputs("linear", base_model="a") == (None, ["a", "b"])


def test_a_base_is_a_model_like_any_other_to_the_karcher_mean(sources: dict[str, Checkpoint]) -> None:
    recipe = _recipe(merge_method="karcher", models=[{"model": "a"}, {"model": "b"}], base_model="base")
    plan = plan_merge(recipe, sources)[0]
    assert plan.base is None
    assert [i.model for i in plan.inputs] == ["a", "b", "base"]
    assert plan.shared == {"max_iter": 10, "tol": 1e-5}


def test_a_filter_may_stand_alone(sources: dict[str, Checkpoint]) -> None:
    setting = {"filter": "attn", "value": 2}
    weights = _weights(plan_merge(_recipe(models=_models(a=setting, b=1), parameters={"weight": 7}), sources), "a")
    assert (weights["model.layers.1.attn.weight"], weights["model.layers.1.mlp.weight"]) == (2, 7)


def test_a_silent_recipe_gets_the_defaults_of_mergekit(sources: dict[str, Checkpoint]) -> None:
    defaults = {}
    for method, known in METHODS.items():
        if "lambda" not in known.shared:
            continue
        plan = plan_merge(_recipe(merge_method=method, models=_models(a=1, b=1), base_model="base"), sources)[0]
        assert plan.shared["lambda"] == 1
        assert plan.inputs[0].values.get("density", 1) == 1
        defaults[method] = (plan.shared["normalize"], plan.shared["rescale"])
    assert defaults == {
        "task_arithmetic": (False, False),
        "ties": (True, False),
        "dare_ties": (False, True),
        "dare_linear": (False, True),
        "della": (True, True),
        "della_linear": (False, True),
        "breadcrumbs": (False, False),
        "breadcrumbs_ties": (False, False),
    }
    plan = plan_merge(_recipe(merge_method="della", models=_models(a=1), base_model="base"), sources)[0]
    assert plan.inputs[0].values == {"weight": 1, "density": 1, "epsilon": 0.15}
    plan = plan_merge(_recipe(merge_method="breadcrumbs", models=_models(a=1), base_model="base"), sources)[0]
    assert plan.inputs[0].values == {"weight": 1, "density": 1, "gamma": 0.01}


def test_whole_numbers_are_copied_from_the_base_or_the_first_model(tmp_path: Path) -> None:
    sources = {
        name: _checkpoint(tmp_path / name, name, _tensors() | {"position_ids": torch.full((3,), number)})
        for number, name in enumerate(("a", "b", "base"))
    }
    plans = plan_merge(_recipe(models=_models(b=1, a=1)), sources)
    (copied,) = [plan for plan in plans if plan.name == "position_ids"]
    assert (copied.method, copied.inputs[0].model, copied.dtype) == (None, "b", torch.int64)
    plans = plan_merge(_recipe(merge_method="ties", models=_models(b=1), base_model="base"), sources)
    assert [plan.inputs[0].model for plan in plans if plan.method is None] == ["base"]


def test_the_output_dtype_is_the_named_one_else_that_of_the_sources(tmp_path: Path) -> None:
    wide = {name: tensor.bfloat16() for name, tensor in _tensors().items()} | {"model.norm.weight": torch.zeros(4)}
    sources = {
        "a": _checkpoint(tmp_path / "a", "a", {name: tensor.bfloat16() for name, tensor in _tensors().items()}),
        "b": _checkpoint(tmp_path / "b", "b", wide),
    }

    def dtypes(**keys: Any) -> dict[str, torch.dtype]:
        return {p.name: p.dtype for p in plan_merge(_recipe(models=_models(a=1, b=1), **keys), sources)}

    assert set(dtypes(dtype="float32", out_dtype="float16").values()) == {torch.float16}
    assert set(dtypes(dtype="float32").values()) == {torch.float32}
    assert dtypes()["lm_head.weight"] == torch.bfloat16
    assert dtypes()["model.norm.weight"] == torch.float32


def test_a_tied_head_that_some_checkpoints_hold_and_some_do_not_is_left_out(tmp_path: Path) -> None:
    tensors = _tensors()
    without = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    with_copy = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    sources = {
        "a": _checkpoint(tmp_path / "a", "a", with_copy, tie_word_embeddings=True),
        "b": _checkpoint(tmp_path / "b", "b", without, tie_word_embeddings=True),
    }
    for first, second in (("a", "b"), ("b", "a")):
        plans = plan_merge(_recipe(models=_models(**{first: 1, second: 1})), sources)
        assert sorted(plan.name for plan in plans) == sorted(without)


def test_a_head_that_is_not_tied_is_merged_though_it_is_a_copy(tmp_path: Path) -> None:
    """As it is before training; so says the config, or the family's where that is silent."""
    tensors = _tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    for number, config in enumerate(({"tie_word_embeddings": False}, {}, {"model_type": "gemma"})):
        sources = {n: _checkpoint(tmp_path / f"{n}{number}", n, tensors, **config) for n in ("a", "b")}
        names = {plan.name for plan in plan_merge(_recipe(models=_models(a=1, b=1)), sources)}
        assert names == tensors.keys() - ({"lm_head.weight"} if config == {"model_type": "gemma"} else set())


def test_a_head_of_its_own_is_missed(tmp_path: Path, sources: dict[str, Checkpoint]) -> None:
    without = {name: tensor for name, tensor in _tensors().items() if name != "lm_head.weight"}
    sources["b"] = _checkpoint(tmp_path / "other", "b", without)
    assert _refusals(_recipe(models=_models(a=1, b=1)), sources) == {
        "models.b": "lacks tensor lm_head.weight, which a has; if its files are incomplete, fetch them again; else "
        "leave b or a out"
    }


def test_shapes_that_differ_are_told_with_model_and_tensor(tmp_path: Path, sources: dict[str, Checkpoint]) -> None:
    wide = _tensors() | {"model.layers.2.mlp.weight": torch.zeros(4, 5)}
    sources["b"] = _checkpoint(tmp_path / "other", "b", wide)
    assert _refusals(_recipe(models=_models(a=1, b=1)), sources) == {
        "models.b": "tensor model.layers.2.mlp.weight has shape [4, 5], but [4, 4] in a; leave b or a out"
    }


def test_misfits_of_one_kind_are_one_problem_and_many_kinds_are_cut(
    tmp_path: Path, sources: dict[str, Checkpoint]
) -> None:
    kinds = "bcdefghijk"
    extra = {f"model.layers.{i}.attn.{kind}": torch.zeros(4) for i in range(LAYERS) for kind in kinds}
    sources["b"] = _checkpoint(tmp_path / "other", "b", _tensors() | extra)
    with pytest.raises(InputError) as caught:
        plan_merge(_recipe(models=_models(a=1, b=1)), sources)
    messages = [p.message for p in caught.value.problems]
    assert messages[:8] == [
        f"has tensor model.layers.0.attn.{kind}, which a lacks in layer 0 (and 3 more tensors like it); "
        "if it can do without, delete it from its files; else leave b or a out"
        for kind in kinds[:8]
    ]
    assert messages[8:] == ["and 8 more tensors do not fit"]


def test_all_mistakes_of_a_recipe_are_told_at_once(sources: dict[str, Checkpoint]) -> None:
    models = [
        {"model": "a", "parameters": {"density": [0.5, 1.5], "wieght": 1}},
        {"model": "c", "parameters": {"weight": float("nan")}},
    ]
    refusals = _refusals(_recipe(merge_method="ties", models=models, parameters={"normalize": 3}), sources)
    assert refusals == {
        "recipe.base_model": "ties needs a base_model",
        "recipe.parameters.normalize": "3 is neither true nor false",
        "recipe.models[0].parameters.density": "1.5 is above 1, the largest density",
        "recipe.models[0].parameters.wieght": "ties has no parameter wieght; it has density, int8_mask, lambda, "
        "normalize, rescale, weight",
        "recipe.models[1].model": "c is not among the sources (a, b, base)",
        "recipe.models[1].parameters.weight": "nan is not a finite number",
        "recipe.weight[a]": "ties needs a weight for a",
    }


def test_words_numbers_and_values_are_told_at_once(sources: dict[str, Checkpoint]) -> None:
    one = {"sources": [{"model": "a", "layer_range": [0, 9]}]}
    assert _refusals(_recipe(slices=[one], parameters={"wieght": 1}), sources) == {
        "recipe.parameters.wieght": "linear has no parameter wieght; it has normalize, weight",
        "recipe.weight[a]": "linear needs a weight for a",
        "recipe.slices[0].sources[0].layer_range": "[0, 9) is not a range within the 4 layers of a",
    }


def test_words_are_told_beside_tensors_that_do_not_fit(tmp_path: Path, sources: dict[str, Checkpoint]) -> None:
    wide = _tensors() | {"model.layers.2.mlp.weight": torch.zeros(4, 5)}
    sources["b"] = _checkpoint(tmp_path / "other", "b", wide)
    models = [{"model": "a", "parameters": {"weight": [{"filter": "mlp", "value": 1}]}}, *_models(b=1)]
    assert _refusals(_recipe(models=models, parameters={"normalise": True}), sources) == {
        "recipe.parameters.normalise": "linear has no parameter normalise; it has normalize, weight",
        "models.b": "tensor model.layers.2.mlp.weight has shape [4, 5], but [4, 4] in a; leave b or a out",
        "recipe.weight[a]": "linear needs a weight for a at model.embed_tokens.weight",
    }


def test_whole_models_of_other_depth_are_one_mistake(tmp_path: Path, sources: dict[str, Checkpoint]) -> None:
    sources["b"] = _checkpoint(tmp_path / "deep", "b", _tensors(6))
    assert _refusals(_recipe(models=_models(a=1, b=1)), sources) == {
        "models.b": "has 6 layers, but a has 4; take as many of each by slices in a recipe, or leave b or a out"
    }


def test_an_empty_list_of_slices_is_none(sources: dict[str, Checkpoint]) -> None:
    recipe = _recipe(models=_models(a=1, b=1))
    assert plan_merge(_recipe(models=_models(a=1, b=1), slices=[]), sources) == plan_merge(recipe, sources)
    assert _refusals(_recipe(models=_models(a=1) * 2, slices=[]), sources) == {
        "recipe.models": "a takes part twice; give it once"
    }


def test_a_density_makes_no_difference_to_task_arithmetic(sources: dict[str, Checkpoint]) -> None:
    """mergekit declares one for the whole family, and recipes give one."""

    def plans(**parameters: Any) -> list[TensorPlan]:
        models = [{"model": "a", "parameters": {"weight": 1, **parameters}}]
        return plan_merge(_recipe(merge_method="task_arithmetic", base_model="base", models=models), sources)

    assert plans(density=0.5) == plans()
    assert "density" not in METHODS["task_arithmetic"].real


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        (
            {"merge_method": "task_swapping", "models": _models(a=1)},
            "recipe.merge_method",
            "task_swapping is not a method this version has",
        ),
        *(
            (
                {"merge_method": written, "models": _models(a=1)},
                "recipe.merge_method",
                f"{written} is not a method this version has; did you mean {near}?",
            )
            for written, near in [("Linear", "linear"), ("dare-ties", "dare_ties"), ("DARE_TIES", "dare_ties")]
        ),
        ({}, "recipe", "give either models or slices"),
        ({"models": _models(a=1), "slices": [{"sources": [{"model": "a", "layer_range": [0, 4]}]}]}, "recipe", "give"),
        ({"models": [{"model": "a"}]}, "recipe.weight[a]", "linear needs a weight for a"),
        (
            {"models": _models(a=[{"filter": "mlp", "value": 1}])},
            "recipe.weight[a]",
            "linear needs a weight for a at model.embed_tokens.weight",
        ),
        ({"models": _models(a=1) * 2}, "recipe.models", "a takes part twice; give it once"),
        (
            {"merge_method": "slerp", "models": [{"model": "a"}, {"model": "b"}], "parameters": {"t": 0.5}},
            "recipe.base_model",
            "slerp needs a base_model",
        ),
        (
            {
                "merge_method": "slerp",
                "models": [{"model": "a"}, {"model": "b"}],
                "base_model": "base",
                "parameters": {"t": 0.5},
            },
            "recipe.models",
            "slerp merges exactly 1 model beside its base_model; here are 2",
        ),
        (
            {"merge_method": "nuslerp", "models": _models(a=1, b=1), "base_model": "b"},
            "recipe.models",
            "nuslerp merges exactly 2 models beside its base_model; here are 1",
        ),
        (
            {"merge_method": "nuslerp", "models": _models(a=1)},
            "recipe.models",
            "nuslerp merges exactly 2 models; here are 1",
        ),
        (
            {"merge_method": "model_stock", "models": [{"model": "a"}, {"model": "base"}], "base_model": "base"},
            "recipe.models",
            "model_stock merges at least 2 models beside its base_model; here are 1",
        ),
        (
            {"merge_method": "passthrough", "models": [{"model": "a"}], "base_model": "b"},
            "recipe.models",
            "passthrough merges at most 1 model; here are 2",
        ),
        (
            {"merge_method": "karcher", "models": [{"model": "a"}], "parameters": {"max_iter": 2.5}},
            "recipe.parameters.max_iter",
            "2.5 is not a whole number",
        ),
        (
            {"merge_method": "karcher", "models": [{"model": "a"}], "parameters": {"max_iter": [1, 2]}},
            "recipe.max_iter",
            "max_iter is 1.33333 at model.layers.1.attn.weight, not a whole number",
        ),
        (
            {"merge_method": "karcher", "models": _models(a=1)},
            "recipe.models[0].parameters.weight",
            "karcher has no parameter weight; it has max_iter, tol",
        ),
        (
            {"merge_method": "della", "models": _models(a=1), "base_model": "base", "parameters": {"density": 0.9}},
            "recipe.density[a]",
            "density 0.9 and epsilon 0.15 for a at model.embed_tokens.weight: density - epsilon must be above 0 and",
        ),
        (
            {"merge_method": "slerp", "models": [{"model": "a"}, {"model": "b"}], "base_model": "a"},
            "recipe.t",
            "slerp needs a t",
        ),
        (
            {"merge_method": "ties", "models": [{"model": "a", "parameters": {"weight": 1, "lambda": 2}}]},
            "recipe.models[0].parameters.lambda",
            "lambda has one value for all models; give it in the parameters of the slice or of the recipe",
        ),
        (
            {
                "merge_method": "ties",
                "base_model": "base",
                "slices": [{"sources": [{"model": "a", "layer_range": [0, 4], "parameters": {"weight": 1}}]}],
            },
            "recipe.slices[0]",
            "the base_model base is not among the slice's sources; add it, without parameters",
        ),
        (
            {"slices": [{"sources": [{"model": "a", "layer_range": [0, 5], "parameters": {"weight": 1}}]}]},
            "recipe.slices[0].sources[0].layer_range",
            "[0, 5) is not a range within the 4 layers of a",
        ),
        (
            {
                "slices": [
                    {"sources": [{"model": "a", "layer_range": [0, 4]}, {"model": "b", "layer_range": [0, 2]}]},
                ],
                "parameters": {"weight": 1},
            },
            "recipe.slices[0]",
            "all sources of a slice must give as many layers as one another",
        ),
    ],
)
def test_a_recipe_that_cannot_be_carried_out_says_why(
    sources: dict[str, Checkpoint], keys: dict[str, Any], path: str, message: str
) -> None:
    assert _refusals(_recipe(**keys), sources)[path].startswith(message)


def test_a_weight_of_one_stays_a_number() -> None:
    """And a switch a truth value, so that the recipe reads in mergekit as it was written."""
    recipe = _recipe(models=_models(a=1, b=0.0), parameters={"normalize": False})
    again = Recipe.model_validate_json(recipe.model_dump_json())
    assert again == recipe
    plain = again.plain()
    assert [repr(m["parameters"]["weight"]) for m in plain["models"]] == ["1.0", "0.0"]
    assert plain["parameters"] == {"normalize": False}


def test_a_slice_without_layers_at_an_end_gives_what_stands_there(sources: dict[str, Checkpoint]) -> None:
    """The first gives the embeddings, the last final norm and head; all layers stay where they are."""
    slices = [
        {"sources": [{"model": "b", "layer_range": [0, 0]}]},
        {"sources": [{"model": "a", "layer_range": [0, LAYERS]}]},
        {"sources": [{"model": "base", "layer_range": [LAYERS, LAYERS]}]},
    ]
    plans = plan_merge(_recipe(merge_method="passthrough", base_model="a", slices=slices), sources)
    of = {plan.name: plan.inputs[0].model for plan in plans}
    assert of["model.embed_tokens.weight"] == "b"
    assert {of[name] for name in ("model.norm.weight", "lm_head.weight")} == {"base"}
    assert {model for name, model in of.items() if ".layers." in name} == {"a"}
    assert len([name for name in of if name.endswith("mlp.weight")]) == LAYERS


@pytest.mark.parametrize(
    ("ranges", "path", "message"),
    [
        (
            [[0, 2], [2, 2], [2, 4]],
            "recipe.slices[1].sources[0].layer_range",
            "[2, 2) has no layers, and between others a slice gives nothing else; leave it out",
        ),
        ([[0, 4], [5, 5]], "recipe.slices[1].sources[0].layer_range", "[5, 5) is not a range within the 4 layers of a"),
        ([[0, 0], [4, 4]], "recipe.slices", "have no layers at all; layer_range is the first layer, and the one"),
    ],
)
def test_a_slice_without_layers_anywhere_else_is_refused(
    ranges: list[list[int]], path: str, message: str, sources: dict[str, Checkpoint]
) -> None:
    slices = [{"sources": [{"model": "a", "layer_range": given}]} for given in ranges]
    refusals = _refusals(_recipe(merge_method="passthrough", slices=slices), sources)
    assert list(refusals) == [path]
    assert refusals[path].startswith(message)


def _both_halves(method: str, **keys: Any) -> Recipe:
    """Layers 0 and 1 of a merged with its layers 2 and 3."""
    halves = [
        {"model": "a", "layer_range": given, "parameters": {"weight": weight}}
        for given, weight in (([0, 2], 0.25), ([2, 4], 0.75))
    ]
    return _recipe(merge_method=method, slices=[{"sources": halves}], **keys)


def test_one_model_may_give_several_of_its_layers_to_a_slice(sources: dict[str, Checkpoint]) -> None:
    plans = plan_merge(_both_halves("linear"), sources)
    name = "model.layers.1.mlp.weight"
    merged = dict(Merger(sources, 0).merged(plans))
    one, other = (sources["a"].tensor(f"model.layers.{i}.mlp.weight").float() for i in (1, 3))
    torch.testing.assert_close(merged[name].float(), 0.25 * one + 0.75 * other)
    torch.testing.assert_close(merged["model.norm.weight"], sources["a"].tensor("model.norm.weight"))
    assert not any(".layers.2." in plan.name for plan in plans)


def test_of_a_base_that_a_slice_has_twice_the_first_is_the_base(sources: dict[str, Checkpoint]) -> None:
    plans = plan_merge(_both_halves("task_arithmetic", base_model="a"), sources)
    plan = next(plan for plan in plans if plan.name == "model.layers.1.mlp.weight")
    assert plan.base is not None
    assert plan.base.tensor == "model.layers.1.mlp.weight"
    assert [(i.tensor, i.values["weight"]) for i in plan.inputs] == [("model.layers.3.mlp.weight", 0.75)]


def test_the_same_layers_twice_in_a_slice_are_refused(sources: dict[str, Checkpoint]) -> None:
    twice = [{"model": "a", "layer_range": [0, 2], "parameters": {"weight": 1}}] * 2
    assert _refusals(_recipe(slices=[{"sources": twice}]), sources) == {
        "recipe.slices[0]": "layers [0, 2) of a take part twice; give them once"
    }
