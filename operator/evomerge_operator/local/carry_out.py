"""Single tasks on this machine, and what their failures mean for the run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from evomerge_contract.manifest import EvoMerge
from evomerge_contract.report import PrepareResult, Report
from evomerge_contract.task import Source, Task
from evomerge_operator.errors import EvoMergeError, InputError, RunError, TryAgainError
from evomerge_operator.mistakes import in_fields
from evomerge_operator.plan.run import prepare_task


class Executor(Protocol):
    """Who carries tasks out: worker processes here, Jobs elsewhere."""

    @property
    def idle(self) -> int:
        """How many tasks could be started now."""

    def start(self, task: Task) -> None:
        """Begin a task."""

    def wait(self) -> list[tuple[Task, Report]]:
        """Block until tasks have ended."""

    def last_words(self) -> str:
        """What a worker last said of its own trouble."""


def prepare(
    executor: Executor,
    manifest: EvoMerge,
    source: str,
    reports: Path,
    known: PrepareResult | None = None,
    winners: Sequence[Source] = (),
) -> PrepareResult:
    """Carry out the prepare task; see `prepare_task`.

    Raises:
        InputError: with every problem found, by field of the manifest.
        TryAgainError: storage did not answer.
    """
    report = carry_out(executor, prepare_task(manifest, reports.resolve().as_uri(), known, winners))
    if report.prepare is not None:
        return report.prepare
    raise error_of(report, f"preparing the sources{executor.last_words()}", manifest, source)


def carry_out(executor: Executor, task: Task) -> Report:
    """Hand one task to an idle worker and wait for its report."""
    executor.start(task)
    while True:
        for done, report in executor.wait():
            if done is task:
                return report


def error_of(report: Report, doing: str, manifest: EvoMerge, source: str | None = None) -> EvoMergeError:
    """What a report that no further attempt can mend means for the run; `source` is the manifest's file."""
    report = in_fields(report, manifest.spec)
    if report.reason == "InvalidInput":
        return InputError(source or manifest.metadata.name, report.problems)
    if report.reason == "TryAgain":
        return TryAgainError(f"{doing}: {report.message}; mend that, and the same command goes on later")
    return RunError(f"{doing}: {report.message} ({report.reason})")
