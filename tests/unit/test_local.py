"""The local executor's surroundings: which workers, whose mistake, what is shown, where the recipe points."""

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from begun import begun
from documents import document
from evomerge_contract.candidate import Candidate
from evomerge_contract.manifest import Base, EvoMerge
from evomerge_contract.recipe import Recipe, RecipeModel
from evomerge_operator.local import workers
from evomerge_operator.local.terminal import Terminal
from evomerge_operator.local.workers import default_workers, worker_environments
from evomerge_operator.plan.run import BASELINES
from evomerge_operator.recipes import Seeded, portable_recipe, recipe_text


def manifest(**spec: object) -> EvoMerge:
    return EvoMerge.model_validate(document(**spec))


def test_workers_are_as_many_as_parallelism_and_cores_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_gpus", list)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    assert default_workers(manifest(parallelism=2).spec) == 2
    assert default_workers(manifest(parallelism=9).spec) == 4
    threaded = document(parallelism=9)
    threaded["spec"]["evaluation"]["threads"] = 3
    assert default_workers(EvoMerge.model_validate(threaded).spec) == 1


def test_each_worker_gets_a_gpu_of_its_own_where_there_are_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert default_workers(manifest(parallelism=9).spec) == 2
    assert [e["CUDA_VISIBLE_DEVICES"] for e in worker_environments(3)] == ["2", "5", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert all("CUDA_VISIBLE_DEVICES" not in e for e in worker_environments(2))


def test_the_recipe_names_places_that_can_be_found_from_the_runs_directory(tmp_path: Path) -> None:
    run, _ = begun(manifest(base={"uri": "base"}))
    recipe = run.baselines[3].recipe
    models = {
        "a": Base(uri=f"file://{tmp_path}/models/a"),
        "b": Base(uri="hf://org/name@" + "0" * 40, adapter=f"file://{tmp_path}/adapters/b"),
        "base": Base(uri="s3://bucket/base"),
    }
    plain = portable_recipe(recipe, models, tmp_path / "runs" / "x").plain()
    assert [m["model"] for m in plain["models"]] == ["../../models/a", "org/name@" + "0" * 40 + "+../../adapters/b"]
    assert plain["base_model"] == "s3://bucket/base"


@pytest.mark.parametrize(
    ("source", "place"), [("union", "union"), ("b", "s3://bucket/b"), ("base", "s3://bucket/base")]
)
def test_the_recipe_names_the_place_of_the_tokenizer(tmp_path: Path, source: str, place: str) -> None:
    """Also that of spec.base, which a recipe without base_model cannot call base."""
    changed = manifest(base={"uri": "base"}, tokenizerSource=source)
    _, proposer = begun(changed)
    recipe = proposer.space.decode((0.25, 0.125))
    models = {name: Base(uri=f"s3://bucket/{name}") for name in ("a", "b", "base")}
    assert portable_recipe(recipe, models, tmp_path).plain()["tokenizer_source"] == place


def test_the_recipes_text_is_yaml_with_numbers_as_they_are(tmp_path: Path) -> None:
    _, proposer = begun(manifest())
    text = recipe_text(Seeded(proposer.space.decode((0.25, 0.125)), 3), manifest(), tmp_path)
    assert "weight: 0.25" in text
    assert "weight: 0.125" in text
    assert text.startswith("# evomerge merge recipe.yaml OUT\nmerge_method: linear\n")


@pytest.mark.parametrize(("method", "random"), [("della", True), ("dare_ties", True), ("ties", False)])
def test_a_random_methods_recipe_names_its_seed(tmp_path: Path, method: str, random: bool) -> None:
    recipe = Recipe(merge_method=method, models=[RecipeModel(model="a")])
    first_line = recipe_text(Seeded(recipe, 3), manifest(), tmp_path).splitlines()[0]
    assert ("--seed" in first_line) == random


def test_without_a_terminal_progress_is_lines_with_counts_and_the_best_so_far() -> None:
    run, _ = begun(manifest())
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=120))
    terminal.searching(run)
    for index in range(8):
        run.stage.progress.finish(_candidate("ps", index, 0.1 * index))
    for index in range(2):
        run.compared.finish(_candidate(BASELINES, index, 0.25 - index / 10))
    terminal.moved(run, running=0)
    assert out.getvalue().splitlines() == [
        "tiny · stage ps · linear · 2 dimensions · GA",
        "8/8   0 running   0.50 s each  best 0.700   best source 0.250 (a)",
    ]


def _candidate(stage: str, index: int, fitness: float) -> Candidate:
    return Candidate(
        stage=stage,
        index=index,
        recipe_digest="sha256:" + "0" * 64,
        algorithm="GA/1",
        outcome="Succeeded",
        fitness=fitness,
        seconds={"total": 0.5},
    )
