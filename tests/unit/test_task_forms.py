"""The wire form of tasks: those that version 0.1.0 wrote stay what they are, in form and digest.

A file of golden/ holds a task as that version wrote it, and the digest that it gave it.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from evomerge_contract.report import SelectResult, SelectRow
from evomerge_contract.task import ConcludeTask, SelectTask, task_adapter

GOLDEN = Path(__file__).parent / "golden"
FORMS = sorted(path.stem.removeprefix("task_") for path in GOLDEN.glob("task_*.json"))


def golden(form: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((GOLDEN / f"task_{form}.json").read_text())
    return loaded


def test_every_kind_of_the_first_version_has_a_full_and_a_minimal_form() -> None:
    kinds = ("conclude", "evaluate", "export", "prepare")
    assert [f"{kind}_{size}" for kind in kinds for size in ("full", "minimal")] == FORMS


@pytest.mark.parametrize("form", FORMS)
def test_a_task_of_the_first_version_keeps_its_digest(form: str) -> None:
    assert task_adapter.validate_python(golden(form)["wire"]).digest == golden(form)["digest"]


@pytest.mark.parametrize("form", FORMS)
def test_a_task_that_the_first_version_could_have_made_is_written_as_it_wrote_it(form: str) -> None:
    """So that a worker of that version, which refuses unknown fields, can read it."""
    assert task_adapter.validate_python(golden(form)["wire"]).wire() == golden(form)["wire"]


def test_a_stage_that_searches_the_order_of_layers_is_part_of_a_preparation_s_identity() -> None:
    wire = golden("prepare_minimal")["wire"]
    task = task_adapter.validate_python(wire | {"flows": [["a", "b"]]})
    assert task.wire()["flows"] == [["a", "b"]]
    assert task.digest != task_adapter.validate_python(wire).digest


def selected(score: float = 0.75) -> SelectResult:
    return SelectResult(ranked=[SelectRow(index=0, fitness=0.5, score=score)])


def test_what_was_selected_is_part_of_a_conclusion_s_identity() -> None:
    digests = [
        task_adapter.validate_python(golden("conclude_minimal")["wire"] | fields).digest
        for fields in ({}, {"selected": selected().wire()}, {"selected": selected(score=0.5).wire()})
    ]
    assert len(set(digests)) == len(digests)


def test_a_conclusion_of_selected_finalists_is_read_back_from_its_wire_form() -> None:
    task = task_adapter.validate_python(golden("conclude_full")["wire"] | {"selected": selected().wire()})
    assert isinstance(task, ConcludeTask)
    assert task.selected == selected()
    assert task_adapter.validate_python(task.wire()) == task


def test_a_selection_has_the_identity_of_contents_and_not_of_places() -> None:
    wire = golden("conclude_full")["wire"] | {"kind": "select"}
    for field in ("baselines", "bootstrapSeed"):
        del wire[field]
    task = task_adapter.validate_python(wire)
    assert isinstance(task, SelectTask)
    elsewhere = [source | {"uri": "s3://elsewhere"} for source in wire["sources"]]
    assert task_adapter.validate_python(wire | {"sources": elsewhere, "trace": {"attempt": 2}}).digest == task.digest
    assert task_adapter.validate_python(wire | {"maskSeeds": [7]}).digest != task.digest
