"""The operator as a process of this machine, with the rights of the chart's service account and no others."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).parent / "evomerge-operator"


@dataclass
class OperatorProcess:
    """A started operator. `environment` is all that it sees of ours besides PATH and HOME."""

    environment: dict[str, str]
    log: Path
    port: int = field(default_factory=lambda: _free_port())
    _process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> "OperatorProcess":
        """Start it (again); its output is added to the log."""
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [COMMAND],
                env={**inherited, "EVOMERGE_PORT": str(self.port), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def exit_code(self) -> int | None:
        """The exit code (negative: the signal that killed it), or None while it runs."""
        return None if self._process is None else self._process.poll()

    def wait(self, seconds: float) -> int:
        """The exit code, once it has ended; the test fails when it does not."""
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the operator still runs after {seconds:g} s; the end of its log:\n{self.tail()}")

    def wait_until_ready(self, seconds: float = 60.0) -> None:
        """Until /readyz says so; the test fails when it ends or takes longer."""
        end = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2):
                    return
            except OSError:
                if self.exit_code() is not None or time.monotonic() > end:
                    pytest.fail(f"the operator is not ready; the end of its log:\n{self.tail()}")
                time.sleep(0.1)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def end(self) -> None:
        """SIGTERM, if it runs, and SIGKILL where that does not do it; returns when it is gone."""
        if self._process is not None and self._process.poll() is None:
            self.send(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
        self.kill()

    def kill(self) -> None:
        """SIGKILL, if it runs; returns when it is gone."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    def tail(self, characters: int = 4000) -> str:
        """The end of what it said."""
        return self.log.read_text(errors="replace")[-characters:]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
