"""Failpoints: EVOMERGE_FAILPOINT=create_job:after,set_status:before kills this process at the first of these places.

For tests of what survives a crash between any two writes; a process without the variable never looks again.
"""

import os
import signal

_ARMED = frozenset(filter(None, os.environ.get("EVOMERGE_FAILPOINT", "").split(",")))
TOLD = "failpoint "
"""How the last line on standard error begins; the place follows."""


def failpoint(write: str, moment: str) -> None:
    """Die here if that is what the environment says, and tell so; `moment` is before or after."""
    place = f"{write}:{moment}"
    if place in _ARMED:
        os.write(2, f"{TOLD}{place}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
