"""How far the session is, sent to the supervisor on the pipe that the reports take.

A line of progress begins with `#`, which no report does, and then is JSON. It holds totals since the session began,
so that one that is left out, or read late, costs nothing. `meter` counts them.
"""

import threading
import time
from collections.abc import Callable
from typing import Annotated

from pydantic import Field, FiniteFloat, ValidationError

from evomerge_contract.base import Contract
from evomerge_worker import meter

_MARK = b"#"
_SEND_SECONDS = 0.5


class Totals(Contract):
    """What a session has done since it began: items scored, and seconds by phase (the one it is in included)."""

    items: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    seconds: dict[str, Annotated[FiniteFloat, Field(ge=0)]] = Field(default_factory=dict)


def parse(line: bytes) -> Totals | None:
    """What a line of the session says about its progress; None when it is another kind of line."""
    if not line.startswith(_MARK):
        return None
    try:
        return Totals.model_validate_json(line[len(_MARK) :])
    except ValidationError:
        return None


class Sender:
    """Sends a line whenever the totals have changed, every half second and by `flush`.

    `send` is called by a thread of its own too; it adds the end of the line.
    """

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send, self._sent = send, b""
        self._sending = threading.Lock()
        threading.Thread(target=self._keep_sending, daemon=True).start()

    def flush(self) -> None:
        """Send what has not been sent yet: before a report, say, so that the figures fit it."""
        with self._sending:
            items, seconds = meter.totals()
            line = _MARK + Totals(items=items, seconds=seconds).model_dump_json().encode()
            if line != self._sent:
                self._send(line)
                self._sent = line

    def _keep_sending(self) -> None:
        while True:
            time.sleep(_SEND_SECONDS)
            try:
                self.flush()
            except OSError:
                return  # the supervisor is gone
