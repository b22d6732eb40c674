"""The note: what a worker pod reports in its termination message, at most 4,000 bytes of strict JSON.

`{"crc32": "...", "notes": [...]}`, in canonical form, holds one entry a task, in the order of the tasks. `t` is the
beginning of the task's digest, `p` the seconds of pull, load, merge, evaluate and total (null: there was no such
phase), and then one of
    s    an evaluation's scores, in the order of its objectives
    z    the result of another task: its JSON, deflated, in base64
    y    the same where that is too long: the number of its digests, the digests, and the JSON without them, deflated
         with the names that the task has as a dictionary, in base85
    r, m reason and message of a failure; in place of m, where the failure names them,
    q, n its problems (path and message), and the number of those that found no room
The durable report holds all the rest.
"""

import base64
import json
import re
import zlib
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, FiniteFloat

from evomerge_contract.answers import failure, success
from evomerge_contract.base import Contract, canonical_json
from evomerge_contract.candidate import PHASES, FailureReason
from evomerge_contract.problems import in_words
from evomerge_contract.report import (
    ConcludeResult,
    EvaluateResult,
    ExportResult,
    PrepareResult,
    Problem,
    Report,
    SelectResult,
)
from evomerge_contract.task import EvaluateTask, Task

NOTE_BYTES = 4000
"""The kubelet keeps 4,096 bytes of a termination message."""
_TIMES = (*PHASES, "total")
_DIGEST_CHARACTERS = 12
_ENTRY_BYTES = 240
_Result = PrepareResult | SelectResult | ConcludeResult | ExportResult
_RESULTS: dict[str, type[_Result]] = {
    "prepare": PrepareResult,
    "select": SelectResult,
    "conclude": ConcludeResult,
    "export": ExportResult,
}
_INFLATED_BYTES = 1 << 21
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_NO_DIGEST = "sha256:-"
_DIGEST_BYTES = 32


class NoteTooLongError(ValueError):
    """A result does not fit into a note."""


class _Entry(Contract):
    t: str
    p: Annotated[list[FiniteFloat | None], Field(min_length=len(_TIMES), max_length=len(_TIMES))]
    s: list[FiniteFloat] | None = None
    z: str | None = None
    y: str | None = None
    r: FailureReason | None = None
    m: str | None = None
    q: list[tuple[str, str]] | None = None
    n: Annotated[int, Field(ge=1)] | None = None


def write_note(tasks: Sequence[Task], reports: Sequence[Report]) -> str:
    """The note on `reports`, the answers to `tasks` one by one.

    Raises:
        NoteTooLongError: a result is larger than a note.
    """
    room = (NOTE_BYTES - 100) // len(tasks)
    pairs = list(zip(tasks, reports, strict=True))
    note = _text([_entry(task, report, room) for task, report in pairs])
    if len(note.encode()) > NOTE_BYTES:
        note = _text([_entry(task, _without_skills(report), room) for task, report in pairs])
    if len(note.encode()) > NOTE_BYTES:
        note = _text([_entry(task, _without_skills(report), room, tight=True) for task, report in pairs])
    if len(note.encode()) > NOTE_BYTES:
        raise NoteTooLongError(
            f"the result takes {len(note.encode())} bytes of a termination message, and {NOTE_BYTES} is all it can hold"
        )
    return note


def read_note(text: str, tasks: Sequence[Task]) -> list[Report] | None:
    """The reports that a note holds on `tasks`, without items; None when it is not a note on exactly these.

    Anything but the very text that `write_note` gave is no note: cut, added to or changed by somebody.
    """
    try:
        notes = json.loads(text)["notes"]
        if _text(notes) != text:
            return None
        entries = [_Entry.model_validate(entry) for entry in notes]
        if len(entries) != len(tasks):
            return None
        return [_report(task, entry) for task, entry in zip(tasks, entries, strict=True)]
    except (ValueError, KeyError, TypeError, RecursionError, zlib.error):
        return None


def _entry(task: Task, report: Report, room: int, *, tight: bool = False) -> dict[str, Any]:
    head: dict[str, Any] = {"t": _short(task), "p": [_milliseconds(report.seconds.get(name)) for name in _TIMES]}
    if report.reason is not None:
        room -= _ENTRY_BYTES // 2
        shown = _problems(report, room) if report.problems else {"m": _cut(report.message or "", room)}
        return head | {"r": report.reason} | shown
    if isinstance(task, EvaluateTask) and report.evaluate is not None:
        return head | {"s": [report.evaluate.scores[o.name] for o in task.objectives]}
    text = canonical_json(_lean(getattr(report, task.kind)))
    if tight:
        return head | {"y": _tight(text, task)}
    return head | {"z": base64.b64encode(zlib.compress(text.encode(), 9)).decode()}


def _tight(text: str, task: Task) -> str:
    """A result's JSON in as few characters as it takes: digests are noise, which no compression makes shorter."""
    digests = _DIGEST.findall(text)
    packer = zlib.compressobj(9, zdict=_dictionary(task))
    rest = packer.compress(_DIGEST.sub(_NO_DIGEST, text).encode()) + packer.flush()
    return base64.b85encode(len(digests).to_bytes(2, "big") + bytes.fromhex("".join(digests)) + rest).decode()


def _loosened(packed: str, task: Task) -> bytes:
    """The JSON that `_tight` was given."""
    raw = base64.b85decode(packed)
    end = 2 + _DIGEST_BYTES * int.from_bytes(raw[:2], "big")
    digests = (raw[i : i + _DIGEST_BYTES].hex() for i in range(2, end, _DIGEST_BYTES))
    rest = zlib.decompressobj(zdict=_dictionary(task)).decompress(raw[end:], _INFLATED_BYTES).decode()
    return re.sub(_NO_DIGEST, lambda _: f"sha256:{next(digests, '')}", rest).encode()


def _dictionary(task: Task) -> bytes:
    """What a result repeats of its task: the names of models and objectives."""
    names = [source.name for source in task.sources] + [o.name for o in getattr(task, "objectives", ())]
    return canonical_json(names).encode()


def _problems(report: Report, room: int) -> dict[str, Any]:
    """As many problems as take `room` bytes of JSON; the first, if it alone takes more, in part."""
    shown: list[list[str]] = []
    for problem in report.problems:
        taken = len(canonical_json([problem.path, problem.message]).encode()) + 1
        if shown and taken > room:
            break
        shown.append([problem.path, _cut(problem.message, room - len(canonical_json(problem.path).encode()) - 4)])
        room -= taken
    left_out = len(report.problems) - len(shown) + (report.left_out or 0)
    return {"q": shown} | ({"n": left_out} if left_out else {})


def _without_skills(report: Report) -> Report:
    """A report without what it says of single skills: the durable report has that all the same."""
    if report.prepare is not None:
        data = {
            name: {split: found.model_copy(update={"skills": {}}) for split, found in splits.items()}
            for name, splits in report.prepare.data.items()
        }
        return report.model_copy(update={"prepare": report.prepare.model_copy(update={"data": data})})
    if report.conclude is None:
        return report
    rows = [row.model_copy(update={"skills": {}}) for row in report.conclude.test]
    return report.model_copy(update={"conclude": report.conclude.model_copy(update={"test": rows})})


def _lean(result: _Result) -> dict[str, Any]:
    """A result as what the planner needs: an export's files are named by its own manifest."""
    if isinstance(result, ExportResult):
        return result.model_copy(update={"files": {}}).wire()
    return result.wire()


def _report(task: Task, entry: _Entry) -> Report:
    if entry.t != _short(task):
        raise ValueError("a note on another task")
    seconds = {name: value for name, value in zip(_TIMES, entry.p, strict=True) if value is not None}
    if entry.r is not None:
        problems = [Problem(path=path, message=message) for path, message in entry.q or ()]
        message = in_words(problems, entry.n or 0) if problems else entry.m or ""
        return failure(task, entry.r, message, problems=problems, left_out=entry.n, seconds=seconds)
    if isinstance(task, EvaluateTask):
        if entry.s is None or len(entry.s) != len(task.objectives):
            raise ValueError("a note without the scores")
        scores = {o.name: s for o, s in zip(task.objectives, entry.s, strict=True)}
        return success(task, EvaluateResult(scores=scores), seconds=seconds)
    if entry.y is not None:
        inflated = _loosened(entry.y, task)
    elif entry.z is not None:
        inflated = zlib.decompressobj().decompress(base64.b64decode(entry.z, validate=True), _INFLATED_BYTES)
    else:
        raise ValueError("a note without the result")
    return success(task, _RESULTS[task.kind].model_validate_json(inflated), seconds=seconds)


def _text(notes: Any) -> str:
    """The one text of the notes, with their checksum."""
    text = canonical_json(notes)
    return f'{{"crc32":"{zlib.crc32(text.encode()):08x}","notes":{text}}}'


def _short(task: Task) -> str:
    return task.digest.removeprefix("sha256:")[:_DIGEST_CHARACTERS]


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _cut(message: str, room: int) -> str:
    """As much of the message as takes `room` bytes of JSON."""
    message = message[: max(0, room)]
    while message and len(canonical_json(message).encode()) > room:
        message = message[: max(0, len(message) - 16)]
    return message
