"""A worker in a pod: tasks from a file that must be the one that was meant, and a note on them all in the end."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from evomerge_contract.answers import failure
from evomerge_contract.exits import EXIT_INVALID_INPUT, EXIT_WORKER_FAILURE
from evomerge_contract.note import NoteTooLongError, write_note
from evomerge_contract.report import Report
from evomerge_contract.task import Task, task_adapter
from evomerge_worker.process.serving import SESSION, exit_code, session
from evomerge_worker.process.signals import Ended, finish_first


class _RefusedError(Exception):
    """The file cannot be served."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def serve_file(file: str, digest: str, note: str, out: BinaryIO, command: Sequence[str] = SESSION) -> int:
    """Carry out the tasks in `file`, one a line, print their reports to `out` and write the note on them to `note`.

    Nothing is carried out unless `digest` (`sha256:<hex>`) is that of the file's bytes and every line is a task.
    A signal that ends the worker ends the session at once; the tasks without a report are then to be tried again.

    Returns: 0 every task is reported · 65 wrong input · 75 try again later · 70 a failure (a file that is not the one
    meant, a result that no note can hold). The note then says why, and standard error too where no report does.
    """
    try:
        tasks = _tasks(Path(file), digest)
    except _RefusedError as refused:
        finish_first()
        return _written(note, str(refused), refused.code, to_stderr=True)
    reports: list[Report] = []
    try:
        with session(out, command, len(tasks)) as carry_out:
            for task in tasks:
                reports.append(carry_out(task))
        finish_first()
    except Ended as ended:
        message = f"the worker was ended by {ended.signal}: its pod is being deleted or evicted"
        reports += [failure(task, "TryAgain", message) for task in tasks[len(reports) :]]
    try:
        return _written(note, write_note(tasks, reports), max(map(exit_code, reports)))
    except NoteTooLongError as error:
        in_words = write_note(tasks, [failure(task, "Error", str(error)) for task in tasks])
        return _written(note, in_words, EXIT_WORKER_FAILURE)


def _tasks(file: Path, digest: str) -> list[Task]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise _RefusedError(f"the tasks in {file} cannot be read ({error.strerror})", EXIT_WORKER_FAILURE) from error
    found = f"sha256:{hashlib.sha256(content).hexdigest()}"
    if found != digest:
        # Another pod may get what was meant: that makes it a failure of this one, not of what the user wrote.
        message = f"{file} is not what the operator wrote: its digest is {found}, not {digest}"
        raise _RefusedError(message, EXIT_WORKER_FAILURE)
    try:
        tasks = [task_adapter.validate_json(line) for line in content.splitlines() if line.strip()]
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "line"
        advice = "use a worker image of the operator's version"
        message = f"a line of {file} is not a task that this worker knows ({where}: {problem['msg']}); {advice}"
        raise _RefusedError(message, EXIT_INVALID_INPUT) from error
    if not tasks:
        raise _RefusedError(f"{file} holds no task", EXIT_INVALID_INPUT)
    return tasks


def _written(note: str, text: str, code: int, *, to_stderr: bool = False) -> int:
    """`code`, with `text` written as the note."""
    if to_stderr:
        sys.stderr.write(f"evomerge-worker: {text}\n")
    try:
        Path(note).write_text(text, encoding="utf-8")
    except OSError as error:
        sys.stderr.write(f"evomerge-worker: the note cannot be written to {note} ({error.strerror})\n")
        return EXIT_WORKER_FAILURE
    return code
