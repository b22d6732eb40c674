"""Reports as answers: which line a session's or a worker's reader takes for the report on a task."""

import pytest

from evomerge_contract.answers import failure, read_answer, success
from evomerge_contract.candidate import MESSAGE_CHARACTERS
from evomerge_contract.manifest import Jsonl, Objective
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import EvaluateResult, ExportResult, Report
from evomerge_contract.task import EvaluateTask

TASK = EvaluateTask(
    sources=[],
    report_dir="file:///nowhere",
    recipe=Recipe(merge_method="linear"),
    objectives=[
        Objective(name=name, jsonl=Jsonl(search="a", select="b", test="c"), metric="acc") for name in ("sums", "text")
    ],
    data={},
    trace={"index": 3},
)
SCORES = EvaluateResult(scores={"sums": 0.5, "text": 0.25})


def line(report: Report) -> bytes:
    return report.line().encode()


def test_success_and_failure_are_read_back_as_they_were_written() -> None:
    for report in (success(TASK, SCORES, seconds={"total": 1.5}, host="node"), failure(TASK, "Crashed", "signal 9")):
        assert read_answer(line(report), TASK) == report
        assert report.trace == TASK.trace


@pytest.mark.parametrize(
    "report",
    [
        success(TASK.model_copy(update={"mask_seed": 1}), SCORES),
        success(TASK, EvaluateResult(scores={"sums": 0.5})),
        success(TASK, SCORES).model_copy(update={"evaluate": None, "export": ExportResult(out="o", files={})}),
        success(TASK, SCORES).model_copy(update={"kind": "select"}),
        failure(TASK, "Crashed", "signal 9").model_copy(update={"reason": None}),
    ],
    ids=["another task's", "a score is missing", "another kind's result", "another kind", "a failure without a reason"],
)
def test_a_report_that_does_not_answer_the_task_is_none(report: Report) -> None:
    assert read_answer(line(report), TASK) is None


def test_what_is_no_report_is_none() -> None:
    assert read_answer(b"Loading checkpoint shards: 100%\n", TASK) is None


def test_a_message_that_no_candidate_can_hold_is_cut() -> None:
    assert failure(TASK, "Error", "x" * 5000).message == "x" * MESSAGE_CHARACTERS
