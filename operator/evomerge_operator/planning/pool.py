"""Helper processes: each call in them may take so much CPU time and memory, and the event loop goes on meanwhile."""

import math
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
from anyio import CapacityLimiter, to_process

from evomerge_operator.errors import EvoMergeError

CPU_SECONDS = 10
MEMORY_BYTES = 256 << 20
"""Beyond what a helper process takes by itself; the chart's memory limit has room for two of them."""
_WALL_SECONDS = 60.0
"""The last resort, for what takes no CPU time or cannot be interrupted."""
_QUICK_SECONDS = 1.0
TOO_LONG, TOO_LARGE = "PlanningTooLong", "PlanningTooLarge"
R = TypeVar("R")


class PlanningError(EvoMergeError):
    """A call took more time or memory than one may; the message says what to do."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(
            f"planning a step of the search {what}; give it fewer models, groups or patterns, a smaller population, or "
            "another algorithm"
        )
        self.reason = reason


class Pool:
    """Two helper processes: one for calls that were quick when their caller last made them, one for all others.

    So a caller that plans at length makes others wait that do so too, and no quick one.
    """

    def __init__(self, *, cpu_seconds: int = CPU_SECONDS, memory_bytes: int = MEMORY_BYTES) -> None:
        self._limits = cpu_seconds, memory_bytes
        self._lanes = {quick: CapacityLimiter(1) for quick in (True, False)}
        self._processes = CapacityLimiter(len(self._lanes))
        self._last_seconds: dict[tuple[str, str], float] = {}
        self.callers: Counter[str] = Counter()
        """Who waits for the answer to a call now."""

    async def call(self, caller: str, function: Callable[..., R], *arguments: Any) -> R:
        """What `function(*arguments)` returns, carried out in a helper process; all of it can be pickled.

        Raises:
            PlanningError: it took too much time or memory, or its process ended.
            Exception: whatever `function` raises.
        """
        self.callers[caller] += 1
        try:
            return await self._answer((caller, function.__name__), function, arguments)
        finally:
            self.callers -= Counter([caller])

    async def _answer(self, kind: tuple[str, str], function: Callable[..., R], arguments: tuple[Any, ...]) -> R:
        async with self._lanes[self._is_quick(kind)]:
            self._last_seconds[kind] = _WALL_SECONDS
            try:
                with anyio.fail_after(_WALL_SECONDS):
                    seconds, result = await to_process.run_sync(
                        _limited, *self._limits, function, arguments, cancellable=True, limiter=self._processes
                    )
            except _TooLongError as error:
                raise PlanningError(TOO_LONG, f"took more than {self._limits[0]} s of CPU time") from error
            except TimeoutError as error:
                raise PlanningError(TOO_LONG, f"was not done after {_WALL_SECONDS:.0f} s") from error
            except anyio.BrokenWorkerProcess as error:
                most = f"{self._limits[1] >> 20} MiB of memory"
                raise PlanningError(TOO_LARGE, f"took more than {most}, or ended its process") from error
            self._last_seconds[kind] = seconds
        return result

    def _is_quick(self, kind: tuple[str, str]) -> bool:
        """Whether a call is expected to be quick: as it was last, or else as the caller's others were, if there are
        two."""
        if kind in self._last_seconds:
            return self._last_seconds[kind] < _QUICK_SECONDS
        others = [last for (caller, _), last in self._last_seconds.items() if caller == kind[0]]
        return len(others) > 1 and max(others) < _QUICK_SECONDS

    def forget(self, caller: str) -> None:
        """Let go of what is known of a caller."""
        self._last_seconds = {kind: last for kind, last in self._last_seconds.items() if kind[0] != caller}


class _TooLongError(Exception):
    """A call has used up its CPU time."""


def _limited(
    cpu_seconds: int, memory_bytes: int, function: Callable[..., R], arguments: tuple[Any, ...]
) -> tuple[float, R]:
    """In the helper process: the seconds that a call took, and what it returned."""
    began = time.monotonic()
    signal.signal(signal.SIGXCPU, _too_long)
    used = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime) + cpu_seconds)
    _limit(resource.RLIMIT_AS, _address_space() + memory_bytes)
    try:
        result = function(*arguments)
    except MemoryError:
        os._exit(1)  # as native code does that gets no memory: not all that the call took would come back
    finally:
        _limit(resource.RLIMIT_CPU, resource.RLIM_INFINITY)
        _limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
    return time.monotonic() - began, result


def _limit(kind: int, soft: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, hard))


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - one line is all there is
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _too_long(*_: object) -> None:
    raise _TooLongError
