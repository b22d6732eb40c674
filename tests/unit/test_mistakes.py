"""A mistake reads the same from `evomerge validate` and from the status that kubectl shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from documents import stage
from evomerge_contract.base import canonical_json
from evomerge_contract.note import NOTE_BYTES, read_note, write_note
from evomerge_contract.problems import MESSAGE_CHARACTERS, in_rows, in_words
from evomerge_contract.report import Problem, Report
from evomerge_contract.task import Task
from evomerge_operator.errors import InputError
from evomerge_operator.local.carry_out import error_of
from evomerge_operator.manifest import load_manifest
from evomerge_operator.mistakes import field_of
from evomerge_operator.services.known import Known
from kube_documents import Document, evomerge, manifest_of
from one_look import first_task, message_of, reported

SUMS = {split: f"s3://data/{split}.jsonl" for split in ("search", "select", "test")}
OBJECTIVE = {"name": "sums", "jsonl": SUMS, "metric": "exact_match"}


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("models.b", "spec.models[1].uri"),
        ("models.b.config.json", "spec.models[1].uri.config.json"),
        ("base", "spec.base"),
        ("objectives.sums.test", "spec.evaluation.objectives[0].jsonl.test"),
        ("objectives.sums.extract", "spec.evaluation.objectives[0].extract"),
        ("models.unknown", "models.unknown"),
        ("objectives.unknown.test", "objectives.unknown.test"),
        ("spec.models[0].uri", "spec.models[0].uri"),
        ("export", "export"),
    ],
)
def test_a_workers_path_becomes_the_field_of_the_manifest(path: str, field: str) -> None:
    assert field_of(path, manifest_of(evomerge()).spec) == field


def test_a_workers_base_is_the_place_of_the_base_where_there_is_one() -> None:
    assert field_of("base", manifest_of(evomerge(base={"uri": "s3://models/base"})).spec) == "spec.base.uri"


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        ({"tokenizerSource": "c"}, ["spec.tokenizerSource"]),
        ({"stages": [stage(method="ties")]}, ["spec.base"]),
        (
            {"stages": [stage(parameters={"weight": {"min": "1", "max": "0"}})]},
            ["spec.stages[0].parameterSpace.parameters.weight.max"],
        ),
        ({"evaluation": {"objectives": [OBJECTIVE, OBJECTIVE]}}, ["spec.evaluation.objectives[1].name"]),
        (
            {"evaluation": {"objectives": [OBJECTIVE | {"extract": "(", "jsonl": SUMS | {"test": SUMS["search"]}}]}},
            ["spec.evaluation.objectives[0].extract", "spec.evaluation.objectives[0].jsonl.test"],
        ),
        ({"parallelism": 0, "colour": "red"}, ["spec.parallelism", "spec.colour"]),
    ],
)
def test_a_mistake_of_the_manifest_reads_the_same(spec: Document, fields: list[str], tmp_path: Path) -> None:
    made = evomerge(**spec)
    rows = validated(made, tmp_path)
    assert [row.path for row in rows] == fields
    assert message_of(Known.of(made)) == in_words(rows)


def test_what_storage_withholds_reads_the_same() -> None:
    made, problem = evomerge(), Problem(path="models.b", message="s3://models/b is empty or does not exist")
    report = failed(first_task(made), [problem], reason="TryAgain")
    message = message_of(reported(made, report, code=75))
    assert message == "spec.models[1].uri: s3://models/b is empty or does not exist"
    error = error_of(report, "preparing the sources", manifest_of(made))
    assert str(error) == f"preparing the sources: {message}; mend that, and the same command goes on later"


def test_a_terminal_has_a_row_a_mistake_with_the_words_in_one_column() -> None:
    problems = [Problem(path="spec.base", message="is missing"), Problem(path="spec.models[0].uri", message="is wrong")]
    assert in_rows("it.yaml", problems).splitlines() == [
        "it.yaml: 2 mistakes",
        "  spec.base            is missing",
        "  spec.models[0].uri   is wrong",
    ]


def test_mistakes_without_room_in_a_note_are_counted() -> None:
    task = first_task(evomerge())
    problems = [Problem(path="models.a", message=f"tensor {number} has another shape") for number in range(200)]
    told = through_a_note([task], [failed(task, problems)])[0]
    assert told.problems == problems[: len(told.problems)]
    assert len(told.problems) > 60
    assert told.left_out == 200 - len(told.problems)
    assert (told.message or "").endswith(f"; and {told.left_out} more")
    assert in_words(problems).endswith(" more")
    assert len(in_words(problems)) <= MESSAGE_CHARACTERS + len("; and 200 more")


@pytest.mark.parametrize("length", [10, 100, 10_000])
def test_each_of_sixteen_tasks_tells_the_beginning_of_its_mistake(length: int) -> None:
    tasks = [first_task(evomerge())] * 16
    text = "é" * length
    told = through_a_note(tasks, [failed(task, [Problem(path="models.a", message=text)]) for task in tasks])
    for report in told:
        (problem,) = report.problems
        assert problem.path == "models.a"
        assert len(problem.message) >= min(length, 30)
        assert text.startswith(problem.message)


def test_a_note_of_an_earlier_worker_is_read_in_its_own_words() -> None:
    task = first_task(evomerge())
    note = write_note([task], [failed(task, []).model_copy(update={"message": "models.a: no config.json"})])
    assert '"m":"models.a: no config.json"' in note
    assert '"q"' not in note
    assert [(r.message, r.problems) for r in read_note(note, [task]) or ()] == [("models.a: no config.json", [])]


def through_a_note(tasks: Sequence[Task], reports: Sequence[Report]) -> list[Report]:
    note = write_note(tasks, reports)
    assert len(note.encode()) <= NOTE_BYTES
    return read_note(note, tasks) or []


def failed(task: Task, problems: list[Problem], reason: Any = "InvalidInput") -> Report:
    message = in_words(problems)[:1000]
    return Report(task=task.digest, kind=task.kind, outcome="Failed", reason=reason, message=message, problems=problems)


def validated(made: Document, folder: Path) -> list[Problem]:
    """What `evomerge validate` finds in a file of this document."""
    plain = {key: made[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": {"name": "tiny"}}
    (folder / "manifest.yaml").write_text(canonical_json(plain))
    with pytest.raises(InputError) as raised:
        load_manifest(folder / "manifest.yaml")
    return raised.value.problems
