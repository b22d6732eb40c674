"""The attempts of a search: their Jobs and pods, what was counted of them, and what a pod said before it vanished.

An attempt is called by the end of its Job's name: `ps-00003-a2`, `prepare-a1`.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any, TypeVar

import pytest

from kubernetes_cluster import Cluster
from searches import Search

Document = dict[str, Any]
T = TypeVar("T")
_COUNTERS = ("attempts", "succeeded", "failures", "disruptions", "waits")


def until(search: Search, what: Callable[[], T], seconds: float = 90.0) -> T:
    """What `what` returns, once that is true; the test fails when it is not in time."""
    end = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > end:
            pytest.fail(f"not so after {seconds:g} s:\n{search.describe()}")
        time.sleep(0.5)  # kubectl costs more than it finds
    return found


def prefix_of(search: Search) -> str:
    """How the names of its children begin."""
    return f"{search.name}-{search.document()['metadata']['uid'].replace('-', '')[:8]}-"


def jobs_of(search: Search) -> dict[str, Document]:
    """The Jobs that are there, by attempt."""
    return {_attempt(search, job["metadata"]["name"]): job for job in search.children("jobs")}


def at_work(search: Search) -> set[str]:
    """The attempts whose worker runs."""
    return set(_pods_at_work(search))


def pod_at_work(search: Search, attempt: str, seconds: float = 90.0) -> str:
    """The name of an attempt's pod, once its worker runs."""
    return until(search, lambda: _pods_at_work(search).get(attempt, ""), seconds)


def counted(search: Search) -> dict[str, dict[str, Any]]:
    """Of every MergeCandidate, by stage and index as in `ps-3`: its counters that are not zero, and how it ended."""
    return {
        f"{stage}-{index}": {
            key: value
            for key, value in (candidate.get("status") or {}).items()
            if value and key in (*_COUNTERS, "outcome", "reason")
        }
        for (stage, index), candidate in search.candidates().items()
    }


def steps(status: Document) -> dict[str, dict[str, int]]:
    """The counters of prepare, conclude and export that are not zero."""
    return {step: {k: v for k, v in counters.items() if v} for step, counters in status["steps"].items()}


class Witness:
    """Remembers the last state of every pod."""

    def __init__(self) -> None:
        self._last: dict[str, Document] = {}

    def saw(self, pod: Document) -> None:
        """A newer state of a pod."""
        self._last[_job_name(pod)] = pod

    def disruption(self, search: Search, attempt: str) -> str | None:
        """The reason that Kubernetes gave for taking an attempt's pod away, if it gave one."""
        conditions = self._pod(search, attempt)["status"].get("conditions") or []
        return next((c["reason"] for c in conditions if c["type"] == "DisruptionTarget"), None)

    def exit(self, search: Search, attempt: str, container: str = "worker") -> tuple[str, int]:
        """Reason and exit code with which an attempt's container ended."""
        statuses = self._pod(search, attempt)["status"]["containerStatuses"]
        ended = next(s["state"]["terminated"] for s in statuses if s["name"] == container)
        return ended["reason"], ended["exitCode"]

    def _pod(self, search: Search, attempt: str) -> Document:
        return next(pod for job, pod in self._last.items() if _attempt(search, job) == attempt)


@contextmanager
def witness(cluster: Cluster, namespace: str) -> Iterator[Witness]:
    """A Witness of all pods of Jobs in the namespace."""
    seen = Witness()
    command = ["kubectl", f"--kubeconfig={cluster.kubeconfig}", "get", "pods", f"--namespace={namespace}"]
    watch = subprocess.Popen(
        [*command, "--watch", "--output=json", "--selector=batch.kubernetes.io/job-name"],
        stdout=subprocess.PIPE,
        text=True,
    )
    reader = Thread(target=_read, args=(watch, seen))
    reader.start()
    try:
        yield seen
    finally:
        watch.kill()
        reader.join()
        watch.wait()


def _read(watch: "subprocess.Popen[str]", seen: Witness) -> None:
    assert watch.stdout is not None
    text = ""
    for line in watch.stdout:
        text += line
        if line == "}\n":  # the only line of an object that begins so
            seen.saw(json.loads(text))
            text = ""


def _attempt(search: Search, job: str) -> str:
    """What follows the name of the search and 8 digits of its UID."""
    return job.removeprefix(f"{search.name}-")[9:]


def _pods_at_work(search: Search) -> dict[str, str]:
    """The pods whose worker runs, by attempt."""
    pods = search.children("pods")
    return {_attempt(search, _job_name(pod)): pod["metadata"]["name"] for pod in pods if _runs(pod)}


def _job_name(pod: Document) -> str:
    return str(pod["metadata"]["labels"].get("batch.kubernetes.io/job-name", ""))


def _runs(pod: Document) -> bool:
    statuses = pod["status"].get("containerStatuses") or []
    running = any(s["name"] == "worker" and "running" in s["state"] for s in statuses)
    return running and "deletionTimestamp" not in pod["metadata"]
