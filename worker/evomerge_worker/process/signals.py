"""How a worker process ends: its exit codes, and the signals that end it. Imports nothing, to hear signals early."""

import signal
from types import FrameType

EXIT_INVALID_INPUT = 65
"""The input is wrong: never retried."""
EXIT_FAILURE = 70
"""What went wrong is neither the input nor the weather: another attempt may be made."""
EXIT_TRY_AGAIN = 75
"""A server did not answer, or somebody ended the worker: the same again, later."""
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
    """From here on the rest is done in a moment: let no signal keep it from being told."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end(number: int, _: FrameType | None) -> None:
    finish_first()
    raise Ended(number)
