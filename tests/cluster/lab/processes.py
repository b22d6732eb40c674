"""Processes by their identity: the pid and the time of the start, since a pid alone is used again."""

import contextlib
import json
from pathlib import Path


def note(path: Path, pid: int) -> None:
    """Write down which process it is."""
    path.write_text(json.dumps({"pid": pid, "started": _started(pid)}))


def noted(path: Path) -> int | None:
    """The pid of the process that was written down, while it lives."""
    try:
        process = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return int(process["pid"]) if _started(process["pid"]) == process["started"] else None


def children(pid: int) -> list[int]:
    """The pids of its children."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def name(pid: int) -> str:
    """What the kernel calls it; empty when it is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _started(pid: int) -> int | None:
    """In the kernel's ticks since the machine's start."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return None
