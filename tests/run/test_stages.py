"""Two stages end to end on the quickstart's trained models: parameter space, then data flow over its winner."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from quickstart_runs import evomerge, manifest, outcome

CANDIDATES = 6
FLOW = {
    "name": "flow",
    "dataFlowSpace": {"models": ["weights", "reader"], "scales": {"per": "Slot"}, "layers": {"max": 8}},
    "search": {"algorithm": "SepCMA-ES", "candidates": CANDIDATES, "seed": 2, "lag": 4},
}


def staged(folder: Path, *further: dict[str, Any]) -> Path:
    path = manifest(folder, candidates=CANDIDATES)
    document = yaml.safe_load(path.read_text())
    document["spec"]["stages"] += further
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    ended = evomerge("run", staged(folder, FLOW), "--out", "out", "--workers", "2", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    (folder / "stdout").write_text(ended.stdout)
    return folder / "out"


def test_the_table_has_the_winners_of_both_stages_and_the_sizes_of_all_models(finished: Path) -> None:
    conclusion = json.loads((finished / "run.json").read_text())["conclusion"]
    rows = {row["name"]: row for row in conclusion["test"]}
    assert {row["role"] for row in rows.values()} == {"winner", "stage", "source", "average", "default", "base"}
    assert (rows["reader"]["layers"], rows["reader"]["cost"]) == (6, 1.0)
    config = json.loads((finished / "best" / "config.json").read_text())
    assert rows["winner"]["layers"] == config["num_hidden_layers"]
    stdout = (finished.parent / "stdout").read_text()
    assert "stage flow · passthrough" in stdout
    assert f"winner ({conclusion['stage']}, candidate {conclusion['winner']})" in stdout
    assert "The stages" in (finished / "report.html").read_text()
    assert not (finished / "stages").exists()


def test_the_recipe_of_all_stages_merged_by_hand_is_the_winner_bit_for_bit(finished: Path) -> None:
    out = finished.parent / "by-hand"
    ended = evomerge("merge", finished / "recipe.yaml", out)
    assert ended.returncode == 0, ended.stderr
    assert (out / "model.safetensors").read_bytes() == (finished / "best" / "model.safetensors").read_bytes()
    assert (out / "config.json").read_bytes() == (finished / "best" / "config.json").read_bytes()


def test_a_run_of_one_stage_that_is_gone_on_with_by_another_ends_as_if_it_had_had_both(
    finished: Path, tmp_path: Path
) -> None:
    ended = evomerge("run", staged(tmp_path), "--out", "out", "--workers", "1", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    alone = outcome(tmp_path / "out")
    ended = evomerge("run", staged(tmp_path, FLOW), "--out", "out", "--workers", "1", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert outcome(tmp_path / "out") == outcome(finished)
    assert alone["log"][1:] == outcome(finished)["log"][1 : len(alone["log"])]
    ended = evomerge("run", staged(tmp_path), "--out", "out", cwd=tmp_path)
    assert ended.returncode != 0
    assert "holds a run of another manifest (differing: stages" in ended.stderr
