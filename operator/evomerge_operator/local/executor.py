"""Worker processes on this machine: hands a task to an idle one and hands back its report."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from evomerge_contract.answers import failure, read_answer
from evomerge_contract.report import Report
from evomerge_contract.task import Task
from evomerge_operator.errors import RunError

_DEATHS_IN_A_ROW = 10
WORKER = (sys.executable, "-m", "evomerge_worker.process.supervisor", "serve")


class _Said(NamedTuple):
    """What a worker process said: a line, or None when it ended. `life` tells apart the lives of one slot."""

    slot: int
    life: int
    line: bytes | None


class _Slot:
    """A worker process and the task it is on."""

    def __init__(self) -> None:
        self.life = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.task: Task | None = None


class LocalExecutor:
    """`slots` worker sessions side by side. Their standard error goes to `log`, a file."""

    def __init__(
        self,
        slots: int,
        log: Path,
        environments: Sequence[Mapping[str, str]] = ({},),
        command: Sequence[str] = WORKER,
    ) -> None:
        """Start the sessions; slot i gets the variables of `environments[i % len]` on top of this process's."""
        self._said: queue.SimpleQueue[_Said] = queue.SimpleQueue()
        self._log = log
        self._environments = environments
        self._command = command
        self._deaths = 0
        self._slots = [_Slot() for _ in range(slots)]
        for index in range(slots):
            self._spawn(index)

    def __enter__(self) -> "LocalExecutor":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def idle(self) -> int:
        """Slots without a task."""
        return sum(slot.task is None for slot in self._slots)

    def start(self, task: Task) -> None:
        """Hand `task` to an idle slot.

        Raises:
            RunError: no slot is idle (the caller's mistake).
        """
        for index, slot in enumerate(self._slots):
            if slot.task is None:
                slot.task = task
                self._send(index, task)
                return
        raise RunError("no worker is idle")

    def wait(self, timeout: float | None = None) -> list[tuple[Task, Report]]:
        """Block until a task has ended, or for `timeout` seconds; the tasks that ended with their reports."""
        ended = []
        try:
            said = self._said.get(timeout=timeout)
            while True:
                result = self._hear(said)
                if result is not None:
                    ended.append(result)
                said = self._said.get_nowait()
        except queue.Empty:
            return ended

    def stop(self) -> None:
        """End all sessions and what they are doing; returns when they are gone."""
        for slot in self._slots:
            slot.life += 1
            if slot.process is not None:
                _end(slot.process)

    def last_words(self) -> str:
        """Where the workers' standard error is and how it ends, to go into a message."""
        try:
            lines = self._log.read_text(errors="replace").split("\n")
        except OSError:
            return ""
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f" ({self._log} ends: {last[:200]})" if last else ""

    def _spawn(self, index: int) -> None:
        slot = self._slots[index]
        slot.life += 1
        environment = os.environ | dict(self._environments[index % len(self._environments)])
        with self._log.open("ab") as log:
            slot.process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the one who plans; it ends the sessions itself
            )
        threading.Thread(target=self._listen, args=(index, slot.life, slot.process), daemon=True).start()

    def _listen(self, index: int, life: int, process: subprocess.Popen[bytes]) -> None:
        if process.stdout is not None:
            for line in process.stdout:
                self._said.put(_Said(index, life, line))
        self._said.put(_Said(index, life, None))

    def _send(self, index: int, task: Task) -> None:
        process = self._slots[index].process
        if process is None or process.stdin is None:
            return
        try:
            process.stdin.write(task.model_dump_json(exclude_none=True, by_alias=True).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            pass  # it died: its listener says so, and the task is reported as crashed

    def _hear(self, said: _Said) -> tuple[Task, Report] | None:
        slot = self._slots[said.slot]
        if said.life != slot.life:
            return None
        task, slot.task = slot.task, None
        if said.line is None:
            if slot.process is not None:
                _end(slot.process)
            self._deaths += 1
            if self._deaths > _DEATHS_IN_A_ROW:
                raise RunError(f"workers keep ending before they report anything{self.last_words()}")
            self._spawn(said.slot)
            return None if task is None else (task, failure(task, "Crashed", "the worker process ended"))
        if task is None:
            return None
        report = read_answer(said.line, task)
        if report is None:
            # What follows on this pipe cannot be trusted either.
            if slot.process is not None:
                _end(slot.process)
            self._spawn(said.slot)
            return task, failure(task, "Garbage", f"the worker printed {said.line[:80]!r} instead of a report")
        self._deaths = 0
        return task, report


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker and its session, and wait until the worker is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
