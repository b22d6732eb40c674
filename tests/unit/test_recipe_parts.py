"""Several recipes in one file: each is merged once, in the order in which they need one another."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evomerge_worker.recipe_file import read_recipes
from evomerge_worker.recipe_parts import in_order
from evomerge_worker.shards import Checkpoint
from evomerge_worker.standalone import merge
from prepare_tasks import Tiny, changed_weights

Recipe = dict[str, Any]


def linear(*models: str, **more: Any) -> Recipe:
    named = [{"model": model, "parameters": {"weight": 0.25 + i}} for i, model in enumerate(models)]
    return {"merge_method": "linear", "models": named, "dtype": "bfloat16"} | more


def sphere(one: str, other: str, **more: Any) -> Recipe:
    return {
        "merge_method": "slerp",
        "models": [{"model": one}, {"model": other}],
        "base_model": one,
        "parameters": {"t": 0.3},
        "dtype": "bfloat16",
    } | more


def written(folder: Path, *recipes: Recipe, out: str = "out") -> list[str]:
    (folder / "recipe.yaml").write_text(yaml.safe_dump_all(recipes))
    return [str(folder / "recipe.yaml"), str(folder / out)]


@pytest.fixture
def models(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    for seed, name in enumerate("abc"):
        shutil.copytree(tiny(seed=seed), tmp_path / name)
    capsys.readouterr()  # what making the models has said
    return tmp_path


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint.open(folder, "it")
    return {name: checkpoint.tensor(name).clone() for name in checkpoint.names}


def test_the_result_is_that_of_merging_one_after_the_other_by_hand(models: Path) -> None:
    last = sphere("two", "one")
    assert merge(written(models, last, linear("one", "c", name="two"), linear("a", "b", name="one"))) == 0
    assert merge(written(models, linear("a", "b"), out="by-hand-one")) == 0
    assert merge(written(models, linear("by-hand-one", "c"), out="by-hand-two")) == 0
    assert merge(written(models, sphere("by-hand-two", "by-hand-one"), out="by-hand")) == 0
    found, expected = tensors(models / "out"), tensors(models / "by-hand")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {file.name for file in (models / "out").iterdir()} == {file.name for file in (models / "by-hand").iterdir()}


def test_what_is_merged_on_the_way_is_told_and_nothing_of_it_is_left(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name for path in models.iterdir()}
    unused = linear("a", "b", name="unused")
    assert merge(written(models, linear("one", "c"), unused, linear("a", "b", name="one"))) == 0
    assert {path.name for path in models.iterdir()} == before | {"out", "recipe.yaml"}
    assert capsys.readouterr().err.splitlines() == [
        f"{models / 'recipe.yaml'}: unused is used by no other recipe, and is not merged",
        "merging one",
        "merging the last",
    ]


def test_a_model_that_is_faulty_is_told_before_anything_is_merged(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def damage(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"][0] = float("nan")

    changed_weights(models / "b", models / "d", damage)
    assert merge(written(models, linear("one", "nowhere"), linear("a", "d", name="one"))) == 65
    told = capsys.readouterr().err
    assert "merging" not in told
    assert "model.norm.weight" in told
    assert "nowhere" in told
    assert not (models / "out").exists()


def test_what_fails_on_the_way_leaves_nothing(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(models / "c")
    (models / "c").mkdir()
    before = {path.name for path in models.iterdir()}
    assert merge(written(models, linear("one", "c"), linear("a", "b", name="one"))) == 65
    assert {path.name for path in models.iterdir()} == before | {"recipe.yaml"}
    assert "c" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipes", "told"),
    [
        ([linear("two"), linear("two", name="one"), linear("one", name="two")],
         "recipe   two uses one uses two: a recipe cannot use its own result"),
        ([linear("one"), linear("a", name="one"), linear("b", name="one")],
         'recipe[2].name   "one" is recipe[1].name too; names must differ'),
        ([linear("a"), linear("b")], "recipe[1].name   is missing, and recipe[0].name too"),
        ([linear("a", name="x"), linear("b", name="y")], "recipe   all 2 recipes have a name"),
        ([linear("a"), linear("b", name="../x")], 'recipe[1].name   "../x" is no name of a recipe'),
        ([linear("a"), linear("b", name=7)], "recipe[1].name   7 is no text to YAML"),
    ],
)  # fmt: skip
def test_recipes_that_cannot_be_put_in_order_are_told(
    recipes: list[Recipe], told: str, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert merge(written(models, *recipes)) == 65
    assert told in capsys.readouterr().err


def test_an_adapter_may_be_put_on_a_result(tmp_path: Path) -> None:
    written(tmp_path, linear("one+lora", "a"), linear("a", name="one"))
    assert [part.name for part in in_order(read_recipes(tmp_path / "recipe.yaml"))] == ["one", None]
