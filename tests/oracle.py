"""mergekit as an oracle: a process of its own, in an environment of its own, imported once for all questions."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Oracle = Callable[..., Any]
"""Asks mergekit: keyword arguments are a question of parity/mergekit_oracle.py; returns the answer."""

_REPOSITORY = Path(__file__).parents[1]
_SCRIPT = Path(__file__).parent / "parity" / "mergekit_oracle.py"


class OracleError(Exception):
    """mergekit is not there, has ended, or refuses the recipe."""


@contextmanager
def ask_mergekit() -> Iterator[Oracle]:
    """Start mergekit's Python (`EVOMERGE_MERGEKIT_PYTHON`, else that of `.venv-mergekit`)."""
    python = Path(os.environ.get("EVOMERGE_MERGEKIT_PYTHON", _REPOSITORY / ".venv-mergekit" / "bin" / "python"))
    if not python.exists():
        raise OracleError(f"mergekit's Python is not at {python}: install it there or set EVOMERGE_MERGEKIT_PYTHON")
    with subprocess.Popen([python, _SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield lambda **question: _ask(process, question)
        process.communicate()  # closes its input, at which it ends


def _ask(process: subprocess.Popen[str], question: dict[str, Any]) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = ""
    if not line:
        raise OracleError(f"mergekit's process has ended ({process.wait()}); its messages are on standard error")
    reply = json.loads(line)
    if "error" in reply:
        raise OracleError(reply["error"])
    return reply["answer"]
