"""What this process has done: items scored, and seconds by phase.

Anything that works calls `phase`, `timed` and `items`, wherever it is; `process.progress` sends the totals. A process
carries out one task at a time. Any thread may read at any time.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class _Meter:
    def __init__(self) -> None:
        self._counting = threading.Lock()
        self._phase: str | None = None
        self._since = time.monotonic()
        self._seconds: dict[str, float] = {}
        self._items = 0.0

    def enter(self, phase: str | None) -> str | None:
        with self._counting:
            self._settle()
            before, self._phase = self._phase, phase
            return before

    def add(self, items: float) -> None:
        with self._counting:
            self._items += items

    def totals(self) -> tuple[float, dict[str, float]]:
        with self._counting:
            self._settle()
            return self._items, {phase: round(seconds, 3) for phase, seconds in self._seconds.items()}

    def _settle(self) -> None:
        now = time.monotonic()
        if self._phase is not None:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._since = now


_meter = _Meter()


def phase(name: str | None) -> str | None:
    """Enter the phase `name` (None: none that counts); returns the phase before."""
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


def totals() -> tuple[float, dict[str, float]]:
    """Items scored since the process began, and seconds by phase, the current one included."""
    return _meter.totals()
