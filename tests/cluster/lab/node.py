"""The node's daemons, started, stopped and started again. All of this runs inside the sandbox."""

import contextlib
import os
import select
import signal
import subprocess

from lab import containers, credentials, daemons, network
from lab.places import KUBECONFIG, LOGS, NODE, STATE, LabError, Places
from lab.sandbox import furnish, make_groups
from lab.shell import wait_for

_PIDS = STATE / "pid"


def up(places: Places) -> None:
    """From an empty sandbox to a node that is Ready and has its default service account."""
    furnish(places)
    make_groups(places)
    LOGS.mkdir()
    _PIDS.mkdir()
    (STATE / "cgroup").write_text(places.cgroup)
    network.start()
    credentials.make()
    start("etcd")
    start("kube-apiserver")
    start("containerd")
    containers.wait_until_up()
    if containers.forget_all():  # what a former run left; containerd reads its list of containers once
        stop("containerd")
        start("containerd")
        containers.wait_until_up()
    containers.import_pause()
    wait_for_api()
    for daemon in ("kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"):
        start(daemon)
    wait_for("the node is Ready", _node_is_ready, 60)
    wait_for("the default service account", lambda: _answers("get", "serviceaccount", "default"), 60)


def start(daemon: str) -> None:
    """Start one of daemons.DAEMONS; its output is added to its log."""
    (STATE / "pod-logs").mkdir(exist_ok=True)
    with (LOGS / f"{daemon}.log").open("ab") as log:
        process = subprocess.Popen(
            daemons.command(daemon, (STATE / "cgroup").read_text()),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (_PIDS / daemon).write_text(str(process.pid))


def stop(daemon: str) -> None:
    """Kill one of daemons.DAEMONS; returns when it is gone. The sandbox's processes are few and its own, so that a
    pid is not used again in a cluster's life."""
    pid = int((_PIDS / daemon).read_text())
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        _wait_for_end(pid, handle)


def wait_for_api() -> None:
    """Until the API server says that it is ready; LabError after a minute."""
    try:
        wait_for("the API server is ready", lambda: _answers("get", "--raw", "/readyz"), 60)
    except LabError as error:
        log = (LOGS / "kube-apiserver.log").read_text()
        raise LabError(f"{error}; the end of its log:\n{log[-2000:]}") from None


def _wait_for_end(pid: int, handle: int) -> None:
    gone, _, _ = select.select([handle], [], [], 30)
    os.close(handle)
    if not gone:
        raise LabError(f"process {pid} does not end")
    with contextlib.suppress(ChildProcessError):  # ours to collect only when this process started it
        os.waitpid(pid, 0)


def _node_is_ready() -> bool:
    return _answers("wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=1s")


def _answers(*arguments: str) -> bool:
    command = ["kubectl", f"--kubeconfig={KUBECONFIG}", "--request-timeout=5s", *arguments]
    return subprocess.run(command, capture_output=True).returncode == 0
