"""Faults on demand. The environment's LIGHT_FAULTS is a JSON object of whom to befall and what with.

Whom, the first of these that is there: "stage/index/attempt", "stage/index", "kind/attempt", "kind" (as in "ps/3/1",
"ps/3", "export/1", "prepare"). The attempt is that of the pod's Job by its name; baselines have the stage "baselines".

What the session does (the supervisor lives on and reports it):
    hang · exit (code 3) · garbage (on the pipe of the reports) · oom (takes memory until it is killed for it)
    sleep:SECONDS (telling progress, then goes on) · fail:REASON (a report with that reason, as in fail:TryAgain)
What befalls the pod itself before it serves:
    pod-exit:CODE (without a note) · pod-garbage (a note that is none, exit 0) · pod-hang · pod-oom
"""

import contextlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import cast

from evomerge_contract.candidate import FailureReason
from evomerge_contract.task import Task, task_adapter
from evomerge_worker import meter
from evomerge_worker.errors import CandidateError

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_MOST_BYTES = 4 << 30
_STEP = 16 << 20


class Faults:
    """What befalls a session. `reports_at` is the descriptor that its supervisor listens at."""

    def __init__(self, reports_at: int) -> None:
        self._reports_at = reports_at

    def befall(self, task: Task) -> None:
        """Do to this session what is meant for it on `task`; return when it is to go on.

        Raises:
            CandidateError: the task is to fail, for the reason wanted.
        """
        fault, _, argument = fault_of(task).partition(":")
        match fault:
            case "hang":
                time.sleep(1e6)
            case "exit":
                os._exit(int(argument or 3))
            case "garbage":
                os.write(self._reports_at, b"Loading checkpoint shards: 100%\n")
                time.sleep(1e6)
            case "oom":
                _take_all_memory()
            case "sleep":
                _sleep(float(argument))
            case "fail":
                raise CandidateError(cast(FailureReason, argument), "made to fail")


def befall_the_pod(arguments: list[str]) -> None:
    """Do what is meant for the pod that is to serve these arguments; return when it is to go on."""
    if arguments[0] != "serve" or not arguments[1:]:
        return
    tasks = [task_adapter.validate_json(line) for line in Path(arguments[1]).read_bytes().splitlines()]
    fault, _, argument = next((f for f in map(fault_of, tasks) if f.startswith("pod-")), "").partition(":")
    match fault:
        case "pod-exit":
            sys.exit(int(argument))
        case "pod-garbage":
            Path(arguments[arguments.index("--note") + 1]).write_text('{"notes":[{"t":"Segmentation fault')
            sys.exit(0)
        case "pod-hang":
            time.sleep(1e6)
        case "pod-oom":
            _take_all_memory()


def fault_of(task: Task) -> str:
    """What is meant for `task` in this pod; empty for nothing."""
    faults: dict[str, str] = json.loads(os.environ.get("LIGHT_FAULTS", "{}"))
    of_job = re.search(r"-a([0-9]+)(-[a-z0-9]+)?$", os.environ.get("HOSTNAME", ""))
    attempt = of_job[1] if of_job else "1"
    trace = task.trace or {}
    names = [f"{trace['stage']}/{trace['index']}"] if "stage" in trace and "index" in trace else []
    for name in (*names, task.kind):
        for key in (f"{name}/{attempt}", name):
            if key in faults:
                return faults[key]
    return ""


def _sleep(seconds: float) -> None:
    """Sleep in steps, one item scored in each."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(0.1, left))
        meter.items(1)


def _take_all_memory() -> None:
    """Take memory until the kernel ends this process; only in a container whose memory is limited."""
    if _limit() > _MOST_BYTES:
        raise RuntimeError("this container has no memory limit that could be reached")
    taken = []
    while True:
        taken.append(b"x" * _STEP)


def _limit() -> int:
    for file in _LIMITS:
        with contextlib.suppress(OSError, ValueError):
            return int(file.read_text())
    return sys.maxsize
