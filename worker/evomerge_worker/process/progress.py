"""How far the session is, sent to the supervisor on the pipe that the reports take.

A line of progress begins with `#`, which no report does, and then is JSON. It holds totals since the session began,
so that one that is left out, or read late, costs nothing. Anything that works calls `phase` and `items`, wherever it
is; they do nothing but count until the session calls `send_with`.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

from pydantic import Field, FiniteFloat, ValidationError

from evomerge_contract.base import Contract

_MARK = b"#"
_SEND_SECONDS = 0.5


class Progress(Contract):
    """What a session has done since it began: items scored, and seconds by phase (the one it is in included)."""

    items: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    seconds: dict[str, Annotated[FiniteFloat, Field(ge=0)]] = Field(default_factory=dict)


def parse(line: bytes) -> Progress | None:
    """What a line of the session says about its progress; None when it is another kind of line."""
    if not line.startswith(_MARK):
        return None
    try:
        return Progress.model_validate_json(line[len(_MARK) :])
    except ValidationError:
        return None


class _Meter:
    """Items and seconds by phase, and where they are sent. Any thread may read it at any time."""

    def __init__(self) -> None:
        self._counting, self._sending = threading.Lock(), threading.Lock()
        self._phase: str | None = None
        self._since = time.monotonic()
        self._seconds: dict[str, float] = {}
        self._items = 0.0
        self._send: Callable[[bytes], None] | None = None
        self._sent = b""

    def enter(self, phase: str | None) -> str | None:
        with self._counting:
            self._settle()
            before, self._phase = self._phase, phase
            return before

    def add(self, items: float) -> None:
        with self._counting:
            self._items += items

    def send_with(self, send: Callable[[bytes], None]) -> None:
        self._send = send

    def flush(self) -> None:
        with self._sending:
            line = self._line()
            if self._send is not None and line != self._sent:
                self._send(line)
                self._sent = line

    def _line(self) -> bytes:
        with self._counting:
            self._settle()
            rounded = {phase: round(seconds, 3) for phase, seconds in self._seconds.items()}
            return _MARK + Progress(items=self._items, seconds=rounded).model_dump_json().encode()

    def _settle(self) -> None:
        now = time.monotonic()
        if self._phase is not None:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._since = now


_meter = _Meter()  # of this process: a session carries out one task at a time


def phase(name: str | None) -> str | None:
    """The session enters the phase `name` (None: none that counts); the phase that it was in."""
    return _meter.enter(name)


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Be in the phase `name`, and add how long to its seconds."""
    started = time.monotonic()
    outer = phase(name)
    try:
        yield
    finally:
        phase(outer)
        seconds[name] = seconds.get(name, 0.0) + time.monotonic() - started


def items(count: float) -> None:
    """So many more items are scored; a part of an item counts as that part."""
    _meter.add(count)


def send_with(send: Callable[[bytes], None]) -> None:
    """From here on call `send` with a line whenever something has changed, at most every half second and by `flush`.

    `send` is called by a thread of its own too; it adds the end of the line.
    """
    _meter.send_with(send)
    threading.Thread(target=_keep_sending, daemon=True).start()


def flush() -> None:
    """Send what has not been sent yet: before a report, say, so that the figures fit it."""
    _meter.flush()


def _keep_sending() -> None:
    while True:
        time.sleep(_SEND_SECONDS)
        try:
            flush()
        except OSError:
            return  # the supervisor is gone
