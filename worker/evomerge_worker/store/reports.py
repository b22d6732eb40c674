"""Durable reports: where a task's report lies, at `file://` or `s3://`, and whether one is there."""

from pydantic import ValidationError

from evomerge_contract.report import Report
from evomerge_contract.task import Task
from evomerge_worker.store.store import Store

_WHERE = "export"  # on a cluster reports lie under the export's URI


def earlier_report(task: Task, store: Store) -> Report | None:
    """The durable report of the same task, if one was written before; a damaged one counts for nothing.

    Raises:
        StorageError: it cannot be told.
    """
    content = store.read(_uri(task), where=_WHERE)
    try:
        report = None if content is None else Report.model_validate_json(content)
    except ValidationError:
        return None
    return report if report is not None and report.task == task.digest else None


def keep_report(task: Task, report: Report, store: Store) -> None:
    """Write the report so that it is there whole, or as it was, whatever happens.

    Raises:
        StorageError: it cannot be written.
    """
    store.write(_uri(task), report.model_dump_json(exclude_none=True, by_alias=True).encode(), where=_WHERE)


def _uri(task: Task) -> str:
    return f"{task.report_dir.rstrip('/')}/{task.digest.removeprefix('sha256:')}.json"
