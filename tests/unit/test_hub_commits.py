"""Models of the hub that are named without a commit: the one they have is found out, shown, and kept for the run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from documents import document, prepared
from evomerge_contract.manifest import EvoMerge
from evomerge_contract.report import PrepareResult
from evomerge_contract.task import Source
from evomerge_operator.local.commits import known_commits, remembered
from evomerge_operator.local.directory import RunDirectory
from evomerge_operator.plan.proposer import begin_stage
from evomerge_operator.plan.run import at_commits, commits, default_names, make_run, prepare_task
from evomerge_operator.recipes import Seeded, recipe_text
from evomerge_worker.prepare import prepare
from evomerge_worker.shards import Checkpoint
from evomerge_worker.standalone import merge
from evomerge_worker.store import Store
from hub import COMMIT, Hub, running_hub, speak_to
from prepare_tasks import Tiny, prepare_task_over

FOUND = {"hf://team/a": f"hf://team/a@{COMMIT}", "hf://team/x@main": f"hf://team/x@{COMMIT}"}


def linear(*models: str) -> dict[str, Any]:
    named = [{"model": model, "parameters": {"weight": 0.5}} for model in models]
    return {"merge_method": "linear", "models": named}


def written(recipe: dict[str, Any], folder: Path) -> list[str]:
    """The arguments of a merge of `recipe`, written to `folder`."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return [str(folder / "recipe.yaml"), str(folder / "out")]


@pytest.fixture
def hub(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the model team/a, to which this process speaks."""
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    with running_hub() as server:
        speak_to(server.endpoint, monkeypatch)
        server.repos["team/a"] = tiny(seed=1)
        yield server


def test_a_recipe_without_commits_is_merged_at_those_it_shows(
    hub: Hub, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However often and in whatever form a model is named."""
    (tmp_path / "b").symlink_to(tiny(seed=2))
    recipe = linear("team/a", "b") | {"tokenizer_source": f"team/a@{COMMIT}", "base_model": "team/a@main"}
    capsys.readouterr()
    assert merge(written(recipe, tmp_path)) == 0
    said = capsys.readouterr().err.splitlines()[:2]
    assert said == [f"team/a is now team/a@{COMMIT}", f"team/a@main is now team/a@{COMMIT}"]
    assert Checkpoint.open(tmp_path / "out", "out").layout.layers == 4


def test_what_is_neither_a_folder_nor_at_the_hub_is_told_as_both(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert merge(written(linear("models/a"), tmp_path)) == 75
    told = capsys.readouterr().err
    assert "models/a: there is no such folder, and as a model of the hub, hf://models/a does not exist, or" in told
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert merge(written(linear("models/a"), tmp_path)) == 65
    told = capsys.readouterr().err
    assert "models/a   there is no such folder, and as a model of the hub, hf://models/a names no commit" in told


def test_preparing_pins_what_names_no_commit(hub: Hub, tiny: Tiny, tmp_path: Path) -> None:
    sources = [Source(name="a", uri="hf://team/a"), Source(name="b", uri=tiny(seed=2).as_uri())]
    task = prepare_task_over(sources, tmp_path)
    store = Store(task.storage, tmp_path / "cache")
    found = prepare(task, store)
    assert [source.commits for source in found.sources] == [{"hf://team/a": f"hf://team/a@{COMMIT}"}, None]
    hub.requests.clear()
    again = task.model_copy(update={"sources": [sources[0].model_copy(update={"uri": FOUND["hf://team/a"]})]})
    assert prepare(again, store).sources[0] == found.sources[0].model_copy(update={"commits": None})
    assert hub.requests == []


def _found(manifest: EvoMerge) -> PrepareResult:
    plain = prepared(manifest)
    return plain.model_copy(
        update={"sources": [plain.sources[0].model_copy(update={"commits": FOUND}), *plain.sources[1:]]}
    )


def _manifest() -> EvoMerge:
    models = [{"name": "a", "uri": "hf://team/a", "adapter": "hf://team/x@main"}, {"name": "b", "uri": "file:///b"}]
    return EvoMerge.model_validate(document(models=models))


def test_all_tasks_of_a_run_and_its_recipe_name_the_commits() -> None:
    run = make_run(_manifest(), _found(_manifest()), "file:///r", default_names(_manifest(), _found(_manifest())))
    wanted = (FOUND["hf://team/a"], FOUND["hf://team/x@main"])
    fields, looked = begin_stage(run, 0).shared_fields(), prepare_task(_manifest(), "file:///r", run.prepared)
    for source in (fields["sources"][0], looked.sources[0]):
        assert (source.uri, source.adapter) == wanted
    text = recipe_text(Seeded(run.baselines[0].recipe, 0), run.manifest, Path("/"))
    assert f"team/a@{COMMIT}+team/x@{COMMIT}" in text
    assert prepare_task(_manifest(), "file:///r").sources[0].uri == "hf://team/a"


def test_a_run_goes_on_with_the_commits_that_it_began_with(tmp_path: Path) -> None:
    """Even if the branch is elsewhere by then; a place that the manifest names anew is looked up."""
    directory = RunDirectory(tmp_path)
    assert known_commits(directory) == {}
    directory.facts.write_text(json.dumps({"prepared": _found(_manifest()).wire()}))
    earlier = known_commits(directory)
    assert earlier == FOUND
    assert at_commits(_manifest(), earlier).spec.models[0].uri == FOUND["hf://team/a"]
    assert commits(remembered(prepared(_manifest()), _manifest(), earlier)) == FOUND
