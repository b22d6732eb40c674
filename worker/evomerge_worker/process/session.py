"""The session: the supervisor's child that holds torch, the open sources and the live model, and carries out tasks.

One task a line on standard input, one report a line on what was standard output when it began; whatever libraries
print goes to standard error instead.
"""

import contextlib
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable
from typing import BinaryIO, Protocol

from evomerge_contract.answers import failure
from evomerge_contract.report import Report
from evomerge_contract.task import Task, task_adapter
from evomerge_worker.errors import WorkerError
from evomerge_worker.process.child import READY
from evomerge_worker.process.progress import Sender
from evomerge_worker.process.tally import PORT_VARIABLE

_PARENT_CHECK_SECONDS = 2.0


def main() -> None:
    """Serve until standard input ends."""
    serve(_pipeline)


def serve(make: Callable[[], "Works"]) -> None:
    """Serve with what `make` makes until standard input ends; tasks may arrive while it is at it."""
    out = _keep_stdout()
    _leave_with_parent()
    tasks = _read_ahead()
    pipeline = make()
    send = _sender(out)
    send(READY)
    progress = Sender(send) if os.environ.get(PORT_VARIABLE) else None
    while (line := tasks.get()) is not None:
        report = carry_out(pipeline, task_adapter.validate_json(line))
        if progress is not None:
            progress.flush()
        send(report.line().encode())


class Works(Protocol):
    """What carries tasks out: the pipeline."""

    def carry_out(self, task: Task) -> Report:
        """The report on `task`."""


def _pipeline() -> Works:
    # A machine with more threads than free cores is many times slower when OpenMP's idle threads spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from evomerge_worker.pipeline import Pipeline
    from evomerge_worker.store import default_cache

    return Pipeline(default_cache())


def carry_out(pipeline: Works, task: Task) -> Report:
    """The report on `task`: whatever goes wrong becomes its failure and reason."""
    started = time.monotonic()
    try:
        return pipeline.carry_out(task)
    except WorkerError as error:
        reason, message, problems = error.reason, str(error), error.problems
    except Exception as error:
        with contextlib.suppress(OSError):  # a full disk under standard error must not end the session
            traceback.print_exc()
        reason, message, problems = "Error", f"{type(error).__name__}: {error}", ()
    seconds = {"total": time.monotonic() - started}
    return failure(task, reason, message, problems=problems, seconds=seconds, host=os.uname().nodename)


def _keep_stdout() -> BinaryIO:
    """Keep standard output for reports alone: print() and C libraries write to standard error from here on."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return out


def _sender(out: BinaryIO) -> Callable[[bytes], None]:
    """A function that any thread may give a line to."""
    one_at_a_time = threading.Lock()

    def send(line: bytes) -> None:
        with one_at_a_time:
            out.write(line + b"\n")
            out.flush()

    return send


def _read_ahead() -> "queue.SimpleQueue[bytes | None]":
    """Lines of standard input as they come, None at its end: a sender never waits for the imports."""
    tasks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    # Not sys.stdin: Python aborts when it ends while a thread waits in there.
    stdin = os.fdopen(os.dup(0), "rb")

    def read() -> None:
        for line in stdin:
            tasks.put(line)
        tasks.put(None)

    threading.Thread(target=read, daemon=True).start()
    return tasks


def _leave_with_parent() -> None:
    """End at once when the supervisor is gone, in the middle of a task too."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
