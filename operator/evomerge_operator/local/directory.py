"""A run's directory: what lies where, and that one process at a time works in it.

log.jsonl      the search log            report.html   the report
best/          the winner, a checkpoint  recipe.yaml   its recipe, for mergekit and `evomerge merge`
reports/       one durable report a task worker.log    what the workers wrote to standard error
run.json       everything the report shows, for `evomerge report`
stages/        the winners of stages that others follow, until the run ends
"""

import fcntl
import os
import shutil
from pathlib import Path

from evomerge_contract.report import EXPORT_MARK
from evomerge_operator.errors import InputError, RunError
from evomerge_operator.local.log import LOG_NAME


class RunDirectory:
    """Paths of a run, and its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path / LOG_NAME
        self.best = path / "best"
        self.recipe = path / "recipe.yaml"
        self.report = path / "report.html"
        self.reports = path / "reports"
        self.worker_log = path / "worker.log"
        self.facts = path / "run.json"
        self.stages = path / "stages"
        self._lock: int | None = None
        self._created = False

    def claim(self) -> None:
        """Create the directory where needed and lock it until `release` (or this process ends, however it ends).

        Raises:
            InputError: it cannot be written.
            RunError: another process works in it.
        """
        try:
            self._created = not self.path.exists()
            self.reports.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            message = f"cannot be written ({error.strerror}); choose another directory with --out"
            raise InputError.at(str(self.path), "--out", message) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"{self.path} is in use by another evomerge process; wait for it or choose --out") from error
        if self.best.exists() and any(self.best.iterdir()) and not (self.best / EXPORT_MARK).exists():
            message = "holds files that no run wrote; move them, or choose another directory with --out"
            raise InputError.at(str(self.path), "best", message)

    def discard(self) -> None:
        """Remove the directory if this process created it and no run began in it."""
        if self._created and not self.log.exists():
            shutil.rmtree(self.path, ignore_errors=True)

    def release(self) -> None:
        """Unlock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
