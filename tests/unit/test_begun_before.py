"""A run that version 0.1.0 began goes on in its own way: its log names no baselines, and one task concludes it."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from documents import document, stage
from evomerge_contract.log import log_line, parse_line
from evomerge_contract.manifest import EvoMerge
from evomerge_contract.report import Report, RunReport
from evomerge_contract.task import ConcludeTask, ExportTask, SelectTask, Task
from evomerge_operator.errors import InputError
from evomerge_operator.local import run as local_run
from evomerge_operator.local.run import run_manifest
from evomerge_operator.plan.run import BASELINES
from simulated_workers import Silent, SimulatedWorkers, answer_any

MANIFEST = EvoMerge.model_validate(document(stages=[stage(candidates=12, lag=4, seed=3)], base={"uri": "models/base"}))
NAMES = ["a", "b", "plain average", "task arithmetic", "default DARE-TIES", "base"]
NAMES_BEFORE = [name for name in NAMES if name != "task arithmetic"]
BEFORE = {"algorithm", "attempts", "generation", "index", "name", "outcome", "recipe", "recipeDigest", "stage"}
"""The fields of every baseline's line in a log of version 0.1.0, besides those of its score."""
SCORED = {"fitness", "report", "scores", "seconds"}


class Workers(SimulatedWorkers):
    """Workers that carry out any task, and know which ones they were given."""

    def __init__(self) -> None:
        super().__init__(2, Random(1), self._answer_any)
        self.tasks: list[Task] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None: ...

    def _answer_any(self, task: Task) -> Report:
        self.tasks.append(task)
        return answer_any(MANIFEST)(task)

    @property
    def steps(self) -> list[Task]:
        """The tasks after the search."""
        return [task for task in self.tasks if task.kind not in ("prepare", "evaluate")]


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    made = Workers()
    monkeypatch.setattr(local_run, "LocalExecutor", lambda *_: made)
    monkeypatch.setattr(local_run, "render_report", lambda *_: None)  # which starts a worker of its own
    return made


def run(folder: Path) -> list[bytes]:
    """Run the manifest, or go on; returns the lines of its log."""
    run_manifest(MANIFEST, "tiny.yaml", folder, 2, Silent())
    return lines_of(folder)


def lines_of(folder: Path) -> list[bytes]:
    return (folder / "log.jsonl").read_bytes().splitlines(keepends=True)


def entry(line: bytes) -> dict[str, Any]:
    found = parse_line(line)
    assert found is not None
    return found


def as_before(lines: list[bytes]) -> list[bytes]:
    """A log as version 0.1.0 wrote it: no names in its first line, no roles in those of baselines, and one fewer."""
    first, *others = [entry(line) for line in lines]
    candidates = [{k: v for k, v in other["candidate"].items() if k != "role"} for other in others]
    candidates = [candidate for candidate in candidates if candidate.get("name") != "task arithmetic"]
    for candidate in candidates:
        if candidate["stage"] == BASELINES:
            candidate["index"] = NAMES_BEFORE.index(candidate["name"])
    return [log_line({"run": first["run"]}), *(log_line({"candidate": candidate}) for candidate in candidates)]


def begun_before(folder: Path, lines: list[bytes]) -> None:
    """The directory of a run that version 0.1.0 began and that was killed."""
    folder.mkdir()
    (folder / "log.jsonl").write_bytes(b"".join(lines))


def test_a_new_run_pins_the_names_of_its_baselines_and_their_roles(workers: Workers, tmp_path: Path) -> None:
    first, *others = [entry(line) for line in run(tmp_path / "new")]
    assert first["baselines"] == NAMES
    baselines = [line["candidate"] for line in others[:6]]
    assert [(b["stage"], b["name"]) for b in baselines] == [(BASELINES, name) for name in NAMES]
    assert [b["role"] for b in baselines] == ["source", "source", "average", "default", "default", "base"]
    assert all("role" not in line["candidate"] for line in others[6:])
    facts = RunReport.model_validate_json((tmp_path / "new/run.json").read_bytes())
    assert facts.baseline_names == NAMES


def test_a_new_run_is_selected_from_before_it_is_concluded(workers: Workers, tmp_path: Path) -> None:
    run(tmp_path / "new")
    select, conclude, export = workers.steps
    assert isinstance(select, SelectTask)
    assert isinstance(conclude, ConcludeTask)
    assert isinstance(export, ExportTask)
    assert conclude.selected is not None
    ranked = [row.index for row in conclude.selected.ranked]
    assert ranked == [f.index for f in select.finalists][::-1]
    recipes = {f.index: f.recipe for f in conclude.finalists}
    assert recipes == {f.index: f.recipe for f in select.finalists}
    assert [b.name for b in conclude.baselines] == NAMES
    assert export.recipe == recipes[ranked[0]]


@pytest.mark.parametrize("lines", [1, 3, 6, 10, 18])
def test_a_run_begun_before_goes_on_and_its_new_lines_look_like_the_old_ones(
    workers: Workers, lines: int, tmp_path: Path
) -> None:
    before = as_before(run(tmp_path / "new"))
    begun_before(tmp_path / "old", before[:lines])
    went_on = run(tmp_path / "old")
    assert went_on == before
    assert entry(went_on[0]).keys() == {"run"}
    for line in went_on[1:6]:
        assert entry(line)["candidate"].keys() == BEFORE | SCORED
    facts = json.loads((tmp_path / "old/run.json").read_bytes())
    assert "baselineNames" not in facts


def test_a_run_begun_before_is_concluded_by_one_task(workers: Workers, tmp_path: Path) -> None:
    before = as_before(run(tmp_path / "new"))
    select = next(task for task in workers.steps if isinstance(task, SelectTask))
    workers.tasks.clear()
    begun_before(tmp_path / "old", before[:9])
    run(tmp_path / "old")
    conclude, export = workers.steps
    assert isinstance(conclude, ConcludeTask)
    assert isinstance(export, ExportTask)
    assert conclude.selected is None
    assert conclude.finalists == select.finalists
    assert [b.name for b in conclude.baselines] == NAMES_BEFORE
    assert export.recipe == conclude.finalists[0].recipe


def test_a_run_that_is_pinned_to_a_baseline_of_another_version_says_so_and_is_left_alone(
    workers: Workers, tmp_path: Path
) -> None:
    first, *others = run(tmp_path / "new")
    lines = [log_line(entry(first) | {"baselines": [*NAMES, "model soup"]}), *others[:7]]
    begun_before(tmp_path / "newer", lines)
    with pytest.raises(InputError) as raised:
        run(tmp_path / "newer")
    [problem] = raised.value.problems
    assert problem.message.startswith('another version has begun this run: there is no baseline "model soup"')
    assert lines_of(tmp_path / "newer") == lines
