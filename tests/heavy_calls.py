"""Functions that helper processes are given in tests: quick ones, and ones that take all they can."""

import os
import re
import time
from pathlib import Path


def square(number: int) -> int:
    """A quick call."""
    return number * number


def process() -> int:
    """The helper process's id."""
    return os.getpid()


def loop_forever() -> None:
    """Takes CPU time without end."""
    while True:
        pass


def match_forever() -> None:
    """One call of native code that takes CPU time without end, as nobody's patience sees one."""
    re.match(r"(a|a)+$", "a" * 64 + "b")


def take_cpu(seconds: float) -> float:
    """Take so many seconds of CPU time, and return."""
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass
    return seconds


def fill_memory() -> None:
    """Takes memory in small pieces without end."""
    pieces = []
    while True:
        pieces.append([object() for _ in range(1000)])


def fill_memory_unevenly() -> None:
    """Takes memory without end in pieces of many sizes, of which an allocator gives little back."""
    pieces: list[bytes] = []
    while True:
        pieces.append(b"x" * (600 + len(pieces) % 5000))


def resident() -> int:
    """The bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def take_memory(size: int) -> int:
    """Take so many bytes at once, and let them go."""
    return len(bytearray(size))


def end_process() -> None:
    """Ends the process, as native code does that gets no memory."""
    os._exit(1)


def fail() -> None:
    """A mistake of the function's own."""
    raise KeyError("of its own")
