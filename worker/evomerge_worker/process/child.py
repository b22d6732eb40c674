"""The session's process, as its supervisor sees it."""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from evomerge_contract.answers import failure, read_answer
from evomerge_contract.candidate import FailureReason
from evomerge_contract.exits import EXIT_TRY_AGAIN
from evomerge_contract.report import Report
from evomerge_contract.task import Task
from evomerge_worker.process.oom import oom_kills
from evomerge_worker.process.progress import Totals, parse

START_SECONDS = 600
READY = b"ready"
"""The session's first line."""
_DYING_SECONDS = 5.0
_PARENT_CHECK_SECONDS = 1.0
_LINE_BYTES = 1 << 26
"""No report is longer; a session that prints without end is no reason to run out of memory."""


class Child:
    """The session's process and its pipes; started anew whenever it is gone.

    `on_progress` is called with the session's process id and totals.
    """

    def __init__(self, command: Sequence[str], on_progress: Callable[[int, Totals], None]) -> None:
        self._command = command
        self._on_progress = on_progress
        self._parent = os.getppid()
        self._child: subprocess.Popen[bytes] | None = None
        self._pending, self._ready = b"", False
        self._start()

    def run(self, task: Task) -> Report:
        """The session's report on `task`, or a failure report in its stead."""
        started, kills = time.monotonic(), oom_kills()
        child = self._child if self._child is not None and self._child.poll() is None else self._start()
        limit = f"the session was not ready after {START_SECONDS} s"
        try:
            if not self._ready:
                # The imports are no task's fault: its clock starts when the session can work.
                self._ready = self._line(child, started + START_SECONDS) == READY
            limit = f"took longer than {task.timeout_seconds} s"
            line = self._exchange(child, task) if self._ready else b""
        except TimeoutError:
            self.close()
            return _failure(task, "TimedOut", limit, started)
        except BrokenPipeError:
            line = b""
        if not line:
            death = _death(child, kills)
            self.close()
            return _failure(task, *death, started)
        report = read_answer(line, task)
        if report is None:
            self.close()
            return _failure(task, "Garbage", f"the session printed {line[:80]!r} instead of a report", started)
        return report

    def close(self) -> None:
        """End the session at once."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it for longer than we can wait
            child.wait(timeout=_DYING_SECONDS)
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _start(self) -> subprocess.Popen[bytes]:
        self.close()
        self._pending, self._ready = b"", False
        self._child = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self._child

    def _exchange(self, child: subprocess.Popen[bytes], task: Task) -> bytes:
        """Send the task and return the line that comes back; empty when the child ended first."""
        if child.stdin is None:
            return b""
        child.stdin.write(task.model_dump_json(exclude_none=True, by_alias=True).encode() + b"\n")
        child.stdin.flush()
        deadline = time.monotonic() + task.timeout_seconds
        while (totals := parse(line := self._line(child, deadline))) is not None:
            self._on_progress(child.pid, totals)
        return line

    def _line(self, child: subprocess.Popen[bytes], deadline: float) -> bytes:
        """The next line of the child, or what is too long for one; empty when it ended first."""
        if child.stdout is None:
            return b""
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending and len(self._pending) < _LINE_BYTES:
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
            self.close()
            sys.exit(EXIT_TRY_AGAIN)


def _failure(task: Task, reason: FailureReason, message: str, started: float) -> Report:
    """The report on a task that its session could not report on; `started` is a time of the monotonic clock."""
    seconds = {"total": time.monotonic() - started}
    return failure(task, reason, message, seconds=seconds, host=os.uname().nodename)


def _death(child: subprocess.Popen[bytes], kills: int | None) -> tuple[FailureReason, str]:
    """Why the session is gone; `kills` is how many had been killed for memory when it began its task."""
    try:
        code = child.wait(timeout=_DYING_SECONDS)
    except subprocess.TimeoutExpired:
        return "Garbage", "the session closed its output without a report"
    if code == -signal.SIGKILL and kills is not None and (oom_kills() or 0) > kills:
        return "OutOfMemory", "memory did not suffice: the kernel ended the session"
    # Elsewhere the exit alone cannot tell: the kernel's out-of-memory killer sends SIGKILL, and so do people.
    return "Crashed", f"the session was ended by signal {-code}" if code < 0 else f"the session ended with exit {code}"
