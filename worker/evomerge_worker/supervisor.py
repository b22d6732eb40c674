"""`evomerge-worker`: takes tasks, hands them one by one to a session, prints one line per report.

The supervisor holds no torch. Its child, the session, does the work; when the child crashes, hangs or prints garbage,
that costs the task it was on and no other: a failure is reported and the next task gets a fresh child.
"""

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import BinaryIO

from pydantic import ValidationError

from evomerge_contract.candidate import FailureReason
from evomerge_contract.report import Report
from evomerge_contract.task import Task, task_adapter

EXIT_INVALID_INPUT = 65
EXIT_TRY_AGAIN = 75
SESSION = (sys.executable, "-m", "evomerge_worker.session")
_EXIT_CODES = {"InvalidInput": EXIT_INVALID_INPUT, "TryAgain": EXIT_TRY_AGAIN}
START_SECONDS = 600
READY = b"ready"
"""The session's first line."""
_DYING_SECONDS = 5.0
_PARENT_CHECK_SECONDS = 1.0


class Session:
    """The child process and its pipes; started anew whenever it is gone."""

    def __init__(self, command: Sequence[str] = SESSION) -> None:
        self._command = command
        self._parent = os.getppid()
        self._child: subprocess.Popen[bytes] | None = None
        self._pending, self._ready = b"", False
        self._start()

    def run(self, task: Task) -> Report:
        """The child's report on `task`, or a failure report in its stead."""
        started = time.monotonic()
        child = self._child if self._child is not None and self._child.poll() is None else self._start()
        limit = f"the session was not ready after {START_SECONDS} s"
        try:
            if not self._ready:
                # The imports are no task's fault: its clock starts when the session can work.
                self._ready = self._line(child, started + START_SECONDS) == READY
            limit = f"took longer than {task.timeout_seconds} s"
            line = self._exchange(child, task) if self._ready else b""
        except TimeoutError:
            self._end()
            return _failure(task, "TimedOut", limit, started)
        except BrokenPipeError:
            line = b""
        if not line:
            death = _death(child)
            self._end()
            return _failure(task, *death, started)
        try:
            report = Report.model_validate_json(line)
        except ValidationError:
            report = None
        if report is None or report.task != task.digest:
            self._end()
            return _failure(task, "Garbage", f"the session printed {line[:80]!r} instead of a report", started)
        return report

    def close(self) -> None:
        """End the child."""
        self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        self._pending, self._ready = b"", False
        self._child = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self._child

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def _exchange(self, child: subprocess.Popen[bytes], task: Task) -> bytes:
        """Send the task and return the line that comes back; empty when the child ended first."""
        if child.stdin is None:
            return b""
        child.stdin.write(task.model_dump_json(exclude_none=True, by_alias=True).encode() + b"\n")
        child.stdin.flush()
        return self._line(child, time.monotonic() + task.timeout_seconds)

    def _line(self, child: subprocess.Popen[bytes], deadline: float) -> bytes:
        """The next line of the child; empty when it ended first."""
        if child.stdout is None:
            return b""
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                if not selector.select(min(left, _PARENT_CHECK_SECONDS)):
                    self._leave_with_parent()
                    continue
                data = os.read(child.stdout.fileno(), 1 << 16)
                if not data:
                    return b""
                self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _leave_with_parent(self) -> None:
        """Whoever started us is gone (killed, perhaps): nobody wants the rest, so free the machine."""
        if os.getppid() != self._parent:
            self._end()
            sys.exit(EXIT_TRY_AGAIN)


def serve(lines: Iterable[bytes], out: BinaryIO, command: Sequence[str] = SESSION) -> int:
    """Carry out the tasks, one a line, in a child `command`; the exit code: 0 reported, 65 wrong input, 75 later."""
    session = Session(command)
    code = 0
    try:
        for line in lines:
            if not line.strip():
                continue
            try:
                task = task_adapter.validate_json(line)
            except ValidationError as error:
                sys.stderr.write(f"evomerge-worker: a line is not a task: {error}\n")
                code = EXIT_INVALID_INPUT
                continue
            report = session.run(task)
            out.write(report.line().encode() + b"\n")
            out.flush()
            code = max(code, _EXIT_CODES.get(report.reason or "", 0))
    finally:
        session.close()
    return code


def _death(child: subprocess.Popen[bytes]) -> tuple[FailureReason, str]:
    try:
        code = child.wait(timeout=_DYING_SECONDS)
    except subprocess.TimeoutExpired:
        return "Garbage", "the session closed its output without a report"
    # The kernel's out-of-memory killer sends SIGKILL, and so do people: the exit alone cannot tell.
    return "Crashed", f"the session was ended by signal {-code}" if code < 0 else f"the session ended with exit {code}"


def _failure(task: Task, reason: FailureReason, message: str, started: float) -> Report:
    return Report(
        task=task.digest,
        kind=task.kind,
        outcome="Failed",
        reason=reason,
        message=message,
        seconds={"total": time.monotonic() - started},
        host=os.uname().nodename,
        trace=task.trace,
    )


_USAGE = """\
evomerge-worker: carries out tasks (prepare, evaluate, conclude, export).

  evomerge-worker serve [FILE]      tasks as JSON lines from FILE or standard input, one line out per report
  evomerge-worker merge RECIPE OUT  merge a mergekit recipe to disk (see `evomerge merge --help`)
  evomerge-worker render OUT.html   a run report as JSON on standard input, an HTML page out
"""


def main() -> None:
    """The console command."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_USAGE)
        sys.exit(0 if arguments else 2)
    command: Callable[[list[str]], int] | None = {"serve": _serve, "merge": _merge, "render": _render}.get(arguments[0])
    if command is None:
        sys.stderr.write(f"evomerge-worker: {arguments[0]!r} is not a command\n{_USAGE}")
        sys.exit(2)
    sys.exit(command(arguments[1:]))


def _serve(arguments: list[str]) -> int:
    if arguments:
        with open(arguments[0], "rb") as file:  # noqa: PTH123 - no Path needed to read lines
            return serve(file, sys.stdout.buffer)
    return serve(iter(sys.stdin.buffer.readline, b""), sys.stdout.buffer)


def _merge(arguments: list[str]) -> int:
    from evomerge_worker.standalone import merge  # imports torch, which serving must not

    return merge(arguments)


def _render(arguments: list[str]) -> int:
    from evomerge_worker.standalone import render

    return render(arguments)


if __name__ == "__main__":
    main()
