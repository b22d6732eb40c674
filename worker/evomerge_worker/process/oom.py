"""Whether the kernel killed for memory: what the control group of this container counts."""

from pathlib import Path

_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))
"""Of cgroup v2 and v1, as a container sees its own."""


def oom_kills() -> int | None:
    """How many processes were killed for memory so far; None where the kernel does not tell (outside containers)."""
    for counter in _COUNTERS:
        try:
            fields = dict(line.split() for line in counter.read_text().splitlines())
            return int(fields["oom_kill"])
        except (OSError, ValueError, KeyError):
            continue
    return None
