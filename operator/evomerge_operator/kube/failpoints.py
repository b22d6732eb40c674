"""Failpoints: EVOMERGE_FAILPOINT=create_job:after:2 kills this process right after its second create_job.

For tests of what survives a crash between any two writes; a process without the variable never looks again.
"""

import os
import signal
from collections import Counter

_ARMED = os.environ.get("EVOMERGE_FAILPOINT", "")
_passed: Counter[str] = Counter()


def failpoint(write: str, moment: str) -> None:
    """Die here if that is what the environment says; `moment` is before or after."""
    if not _ARMED:
        return
    place = f"{write}:{moment}"
    _passed[place] += 1
    if f"{place}:{_passed[place]}" == _ARMED:
        os.kill(os.getpid(), signal.SIGKILL)
