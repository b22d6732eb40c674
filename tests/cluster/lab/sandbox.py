"""The cluster's own network, mounts and processes: what happens there stays there.

One process (`pause`) is the first of a process namespace with a network and mounts of its own; every daemon, container
and test of the cluster lives in it. When that process ends, the kernel ends all others with it, and their mounts and
interfaces go with the namespaces: nothing has to be looked for. Only the control groups are the machine's.
"""

import os
import select
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lab import processes
from lab.places import BIN, INSIDE, KUBECONFIG, LabError, Places
from lab.shell import run, wait_for

_NAMESPACES = ("--net", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc")
_KERNEL_SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
"""What a kubelet insists on writing, though these are the machine's and no namespace holds them."""


def start(places: Places) -> None:
    """Make the namespaces and their first process, and note it down."""
    with places.sandbox_log.open("wb") as log:
        parent = subprocess.Popen(
            ["unshare", *_NAMESPACES, BIN / "pause"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    first: list[int] = []

    def is_there() -> bool:
        if parent.poll() is not None:
            said = places.sandbox_log.read_text().strip()
            raise LabError(f"cannot make namespaces here ({said}): is this a container without privileges?")
        # Once it bears this name, all of it is unshared.
        first[:] = [p for p in processes.children(parent.pid) if processes.name(p) == "pause"]
        return bool(first)

    wait_for("the sandbox's first process", is_there, 10, every=0.01)
    processes.note(places.sandbox, first[0])


def process(places: Places) -> int | None:
    """The first process of the cluster's sandbox, or None when there is none (any more)."""
    return processes.noted(places.sandbox)


def command(places: Places, command: Sequence[str | Path], cwd: Path | None = None) -> list[str]:
    """The command that runs `command` inside the sandbox."""
    pid = process(places)
    if pid is None:
        raise LabError(f"the cluster {places.name!r} is not up: python tests/cluster/lab up")
    inside = {"PATH": f"{BIN}:{os.environ['PATH']}", "KUBECONFIG": str(KUBECONFIG)}
    return [
        *("nsenter", "--target", str(pid), "--net", "--mount", "--pid", "--"),
        *("env", "--default-signal=INT", "-C", str(cwd or Path.cwd())),
        *(f"{name}={value}" for name, value in inside.items()),
        *(str(c) for c in command),
    ]


def call(places: Places, wanted: Sequence[str | Path], cwd: Path | None = None) -> int:
    """Run the command inside, on this terminal; its exit code. Control-C reaches the command, which ends as it likes;
    neither we nor nsenter die of it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.call(command(places, wanted, cwd))
    finally:
        signal.signal(signal.SIGINT, before)


def furnish(places: Places) -> None:
    """Inside: what the cluster's processes would else write into the machine's folders and kernel gets private ones."""
    if os.getpid() == 1 or not _is_alone():
        raise LabError("this belongs into the sandbox, not onto the machine")
    run(["ip", "link", "set", "lo", "up"])
    for folder in ("/run", "/var/log"):
        run(["mount", "-t", "tmpfs", "tmpfs", folder])
    INSIDE.mkdir()
    run(["mount", "--bind", places.folder, INSIDE])
    copies = Path("/run/kernel-settings")
    for setting in _KERNEL_SETTINGS:
        copy, original = copies / setting, Path("/proc/sys") / setting
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(original.read_text())
        run(["mount", "--bind", copy, original])
    run(["mount", "--make-rshared", "/"])  # shared with the pods; not with the machine, whose mounts were made private


def end(places: Places) -> None:
    """End the first process, and with it all; remove the control groups."""
    pid = process(places)
    if pid is not None:
        handle = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        gone, _, _ = select.select([handle], [], [], 60)
        os.close(handle)
        if not gone:
            raise LabError(f"the sandbox's process {pid} does not end")
    places.sandbox.unlink(missing_ok=True)
    _remove_groups(places)


def make_groups(places: Places) -> None:
    """The control group under which the kubelet makes those of its pods."""
    for hierarchy in _hierarchies():
        if (hierarchy / "cgroup.subtree_control").exists() and hierarchy.name != "unified":
            (hierarchy / "cgroup.subtree_control").write_text("+cpu +cpuset +memory +pids")
        (hierarchy / places.cgroup).mkdir(exist_ok=True)


def _remove_groups(places: Places) -> None:
    def remove() -> bool:
        left = False
        for hierarchy in _hierarchies():
            for group, _, _ in os.walk(hierarchy / places.cgroup, topdown=False):
                try:
                    Path(group).rmdir()
                except OSError:  # a process in it is still dying
                    left = True
        return not left

    wait_for("the pods' control groups are empty", remove, 30)


def _hierarchies() -> list[Path]:
    """Every mounted hierarchy: many with control groups version 1, one with version 2."""
    root = Path("/sys/fs/cgroup")
    return [root] if (root / "cgroup.procs").exists() else [h for h in root.iterdir() if (h / "cgroup.procs").exists()]


def _is_alone() -> bool:
    """Whether the first process here is the sandbox's, not the machine's."""
    return processes.name(1) == "pause"
