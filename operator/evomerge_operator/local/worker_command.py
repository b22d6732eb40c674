"""The worker's other commands, for what is no task: merging by hand and drawing the report."""

import subprocess
import sys
from pathlib import Path

from evomerge_contract.report import RunReport
from evomerge_operator.errors import RunError

_WORKER = [sys.executable, "-m", "evomerge_worker.process.supervisor"]


def render_report(facts: RunReport, out: Path) -> None:
    """Write the HTML page of `facts` to `out`.

    Raises:
        RunError: the worker failed; its message is on standard error.
    """
    ended = subprocess.run([*_WORKER, "render", str(out)], input=facts.model_dump_json(by_alias=True).encode())
    if ended.returncode != 0:
        raise RunError(f"{out}: the report could not be drawn (exit {ended.returncode})")


def merge_by_hand(arguments: list[str]) -> int:
    """`evomerge-worker merge` with these arguments; its exit code. Messages go to the terminal."""
    return subprocess.run([*_WORKER, "merge", *arguments]).returncode
