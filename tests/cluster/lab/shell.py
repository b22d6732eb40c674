"""Running a command, and waiting for a condition."""

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lab.places import LabError


def run(
    command: Sequence[str | Path],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """The command's standard output; LabError with the end of what it said when it fails."""
    done = subprocess.run([str(c) for c in command], input=stdin, env=env, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:].strip()
        raise LabError(f"`{' '.join(str(c) for c in command)}` ended with {done.returncode}:\n{said}")
    return done.stdout


def wait_for(what: str, condition: Callable[[], bool], seconds: float, every: float = 0.1) -> None:
    """Return once the condition holds; LabError when it does not within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise LabError(f"{what}: not so after {seconds:g} s")
        time.sleep(every)
