"""The log of a run: append-only, synced, checksummed lines; the first names the run, each further one a candidate.

Candidates are appended in the order of their indices, whatever order they finish in, so that two runs of one search
write the same log but for times, hosts and attempts. (A candidate that finished early loses nothing by a kill: its
report lies durably in the run's directory and is found again.)
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge_contract.base import canonical_json
from evomerge_contract.candidate import Candidate
from evomerge_contract.log import BEGINNING, LOG_NAME, first_entry, log_line, parse_line
from evomerge_operator.errors import RunError
from evomerge_operator.local.files import write_whole

__all__ = ["LOG_NAME", "RunLog", "read_log"]


class RunLog:
    """An open log; one process at a time may hold it (the run's lock sees to that)."""

    def __init__(self, path: Path, identity: dict[str, Any], baselines: Sequence[str]) -> None:
        """Open the log of the run `identity`, or begin it, pinned to the baselines of these names.

        A log whose run has fewer stages, the first ones of this, is gone on with, and is this run's from then on.

        Raises:
            RunError: the log is another run's, or damaged before its end.
        """
        self.path = path
        self.found: list[Candidate] = []
        """What was in it when it was opened."""
        self.baselines: list[str] | None = list(baselines)
        """The names that it is pinned to; None: it was begun before there were any."""
        entries, good_bytes = _read(path)
        if entries and _is_part(entries[0], identity):
            good_bytes = _begin_anew(path, first_entry(identity, entries[0]["baselines"]), entries)
        elif entries:
            _refuse_other_run(path, entries[0].get("run"), identity)
        if entries:
            self.baselines = entries[0].get("baselines")
            self.found = _candidates(entries)
        # A line torn by a kill is cut off: it was never believed.
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(good_bytes)
        self._file.seek(good_bytes)
        if not entries:
            self._write(first_entry(identity, self.baselines))

    def append(self, candidate: Candidate) -> None:
        """Add a candidate; on return it survives a power cut."""
        self._write({"candidate": candidate.wire()})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(log_line(entry))
        self._file.flush()
        os.fsync(self._file.fileno())


def read_log(path: Path) -> list[Candidate]:
    """The candidates of a log, without opening it for writing.

    Raises:
        RunError: there is no log, or it is damaged before its end.
    """
    entries, _ = _read(path)
    if not entries:
        raise RunError(f"{path}: there is no log of a run here; give the folder that `evomerge run` wrote")
    return _candidates(entries)


def _candidates(entries: list[dict[str, Any]]) -> list[Candidate]:
    return [Candidate.model_validate(entry["candidate"]) for entry in entries[1:]]


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The valid entries and the number of bytes they take; a torn last line is left out.

    Raises:
        RunError: a line that is not the last is damaged.
    """
    if not path.exists():
        return [], 0
    entries: list[dict[str, Any]] = []
    position = 0
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        entry = parse_line(line)
        if entry is None:
            if number == len(lines) and line[: len(BEGINNING)] == BEGINNING[: len(line)]:
                break
            raise RunError(
                f"{path}, line {number}: the log is damaged or is none (a checksum does not match); "
                f"restore the file, or remove the run's directory to start anew"
            )
        entries.append(entry)
        position += len(line)
    return entries, position


def _is_part(first: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a log's run is this one but for further stages. One without pinned baselines is concluded otherwise."""
    found, wanted = first.get("run") or {}, json.loads(canonical_json(wanted))
    stages, more = found.get("stages") or [], wanted.get("stages") or []
    same = found | {"stages": more} == wanted
    return same and len(stages) < len(more) and stages == more[: len(stages)] and "baselines" in first


def _begin_anew(path: Path, first: dict[str, Any], entries: list[dict[str, Any]]) -> int:
    """Give a log another first line, at once; the number of bytes that it has then."""
    lines = b"".join(log_line(entry) for entry in (first, *entries[1:]))
    write_whole(path, lines)
    return len(lines)


def _refuse_other_run(path: Path, found: Any, wanted: dict[str, Any]) -> None:
    wanted = json.loads(canonical_json(wanted))
    if found == wanted:
        return
    differing = ", ".join(_differences(found, wanted, "")) or "everything"
    raise RunError(
        f"{path.parent} holds a run of another manifest (differing: {differing}); "
        f"choose another directory with --out, or remove this one"
    )


def _differences(found: Any, wanted: Any, path: str) -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(found.keys() | wanted.keys())
        return [d for k in keys for d in _differences(found.get(k), wanted.get(k), f"{path}.{k}" if path else k)]
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = enumerate(zip(found, wanted, strict=True))
        return [d for i, (f, w) in pairs for d in _differences(f, w, f"{path}[{i}]")]
    if found == wanted:
        return []
    return [path if len(f"{found}{wanted}") > 60 else f"{path} was {found}, now {wanted}"]
