"""The signals that end a worker. Imports nothing slow, to hear them early."""

import signal
from types import FrameType

from evomerge_contract.exits import EXIT_TRY_AGAIN

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Ended(SystemExit):
    """A signal ended the worker: its pod is deleted or evicted. Nothing that is half done counts."""

    def __init__(self, number: int) -> None:
        super().__init__(EXIT_TRY_AGAIN)
        self.signal = signal.Signals(number).name


def end_at_signals() -> None:
    """Raise `Ended` in the main thread at the first signal that asks to end.

    The first process of a container hears only the signals that it handles: the kernel drops the others.
    """
    for number in _SIGNALS:
        signal.signal(number, _end)


def finish_first() -> None:
    """From here on the rest is done in a moment: let no signal keep it from being reported."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end(number: int, _: FrameType | None) -> None:
    finish_first()
    raise Ended(number)
