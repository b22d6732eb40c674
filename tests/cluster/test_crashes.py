"""A search survives the end of its operator, wherever that comes: nothing is done twice, and the log is the same."""

import json
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from audit_log import job_creates, unheld_writes
from evomerge_operator.kube.failpoints import TOLD
from evomerge_operator.kube.gateway import WRITES
from evomerge_operator.kube.lease import DURATION_SECONDS, RETRY_SECONDS
from kubernetes_cluster import Cluster, KubectlError
from operator_process import OperatorProcess
from releases import Release
from s3 import S3Server
from searches import Search, exported, log_of

_OF_JOBS = {f"{write}:{moment}" for write in ("create_job", "delete_job") for moment in ("before", "after")}


def test_a_kill_around_any_write_changes_nothing(
    undisturbed: Search,
    light_search: Callable[..., Search],
    release: Release,
    operator_process: Callable[..., OperatorProcess],
    namespace: str,
    s3: S3Server,
) -> None:
    search = light_search("killed", ttlSecondsAfterFinished=0)
    left = {f"{write}:{moment}" for write in WRITES for moment in ("before", "after")}
    operator = None
    while left:
        armed = {"EVOMERGE_FAILPOINT": ",".join(sorted(left))}
        if operator is None:
            operator = operator_process("evomerge", namespace, **armed)
        else:
            operator.environment.update(armed)
            operator.start()
        assert operator.wait(90) == -signal.SIGKILL, f"before {left}:\n{operator.tail()}"
        killed_at = operator.tail().rpartition(TOLD)[2].strip()
        left.remove(killed_at)
        if killed_at == "create_candidate:before":
            left |= _OF_JOBS  # those of prepare's Job are behind us: once more, with candidates
    with pytest.raises(KubectlError, match="NotFound"):  # its last write was its own end
        search.document()
    assert_as_undisturbed(search, undisturbed, s3)


def test_a_standby_goes_on_when_the_leader_stands_still_or_is_killed(
    undisturbed: Search,
    light_search: Callable[..., Search],
    release: Release,
    operator_process: Callable[..., OperatorProcess],
    cluster: Cluster,
    namespace: str,
    s3: S3Server,
) -> None:
    first = operator_process("evomerge", namespace)
    wait_for_leader(cluster, namespace, "operator-0")
    second = operator_process("evomerge", namespace)
    search = light_search("handed", parallelism=1, faults={"evaluate": "sleep:1"})
    search.wait(lambda status: status.get("done", 0) >= 1)

    first.send(signal.SIGSTOP)  # its pod ends meanwhile: awake again, it would have much to write
    wait_for_leader(cluster, namespace, "operator-1")
    search.wait(lambda status: status.get("done", 0) >= 2)
    first.send(signal.SIGCONT)
    assert first.wait(30) == 1, "it saw that the Lease was lost"

    first.start()
    search.wait(lambda status: status.get("done", 0) >= 3)
    second.kill()
    wait_for_leader(cluster, namespace, "operator-0")

    search.succeeds()
    unheld, tried = unheld_writes(cluster, namespace)
    assert not unheld
    assert tried > 30
    assert_as_undisturbed(search, undisturbed, s3)


def wait_for_leader(cluster: Cluster, namespace: str, name: str) -> None:
    """Until the Lease is held by `name`; the test fails when a standby takes longer over than the Lease's duration
    and its own pause, and a little for a busy machine."""
    end = time.monotonic() + DURATION_SECONDS + RETRY_SECONDS + 8
    while (holder := _holder(cluster, namespace)) != name:
        assert time.monotonic() < end, f"the leader is {holder}"
        time.sleep(0.2)


def _holder(cluster: Cluster, namespace: str) -> str | None:
    try:
        holder: str | None = cluster.get("lease/evomerge", f"--namespace={namespace}")["spec"]["holderIdentity"]
    except KubectlError:
        return None
    return holder


def assert_as_undisturbed(search: Search, undisturbed: Search, s3: S3Server) -> None:
    """The same log and conclusion, and each Job made once, in the same attempts."""
    undisturbed.succeeds()
    assert log_of(s3, search) == log_of(s3, undisturbed)
    assert conclusion(s3, search) == conclusion(s3, undisturbed)
    creates = job_creates(search)
    assert set(creates.values()) == {1}, creates
    assert creates == job_creates(undisturbed)


def conclusion(s3: S3Server, search: Search) -> dict[str, Any]:
    """Its exported conclusion."""
    found: dict[str, Any] = json.loads(exported(s3, search, "run.json"))["conclusion"]
    return found
