"""Reports as answers to their tasks: how each is made, and which report answers which task."""

from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from evomerge_contract.candidate import MESSAGE_CHARACTERS, FailureReason
from evomerge_contract.report import (
    ConcludeResult,
    EvaluateResult,
    ExportResult,
    PrepareResult,
    Problem,
    Report,
    SelectResult,
)
from evomerge_contract.task import EvaluateTask, Task

Result = PrepareResult | EvaluateResult | SelectResult | ConcludeResult | ExportResult


def success(
    task: Task, result: Result, *, seconds: Mapping[str, float] | None = None, host: str | None = None
) -> Report:
    """The report that `task` gave `result`, which is of the task's kind."""
    return Report(
        task=task.digest,
        kind=task.kind,
        outcome="Succeeded",
        seconds=dict(seconds or {}),
        host=host,
        trace=task.trace,
        **{task.kind: result},
    )


def failure(
    task: Task,
    reason: FailureReason,
    message: str,
    *,
    problems: Sequence[Problem] = (),
    left_out: int | None = None,
    seconds: Mapping[str, float] | None = None,
    host: str | None = None,
) -> Report:
    """The report that `task` failed. A message that is too long for a candidate is cut; one of problems is not.

    `left_out` is how many further problems there were.
    """
    return Report(
        task=task.digest,
        kind=task.kind,
        outcome="Failed",
        reason=reason,
        message=message if problems else message[:MESSAGE_CHARACTERS],
        problems=list(problems),
        left_out=left_out,
        seconds=dict(seconds or {}),
        host=host,
        trace=task.trace,
    )


def read_answer(line: bytes, task: Task) -> Report | None:
    """The report that `line` is; None if it is none on `task`, with the result of its kind or a reason for its failure.

    The result of an evaluation holds a score of every objective.
    """
    try:
        report = Report.model_validate_json(line)
    except ValidationError:
        return None
    if (report.task, report.kind) != (task.digest, task.kind):
        return None
    if report.outcome == "Failed":
        return report if report.reason is not None else None
    if getattr(report, task.kind) is None:
        return None
    if isinstance(task, EvaluateTask) and report.evaluate is not None:
        return report if all(o.name in report.evaluate.scores for o in task.objectives) else None
    return report
