"""Pods that are lost, and pods that fail: each is counted as what it is, and the search goes on."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attempts import at_work, counted, jobs_of, pod_at_work, steps, until, witness
from audit_log import job_creates
from image_references import Images
from kubernetes_cluster import Cluster
from operator_process import OperatorProcess
from releases import Release
from s3 import S3Server
from searches import Search, log_of

BASELINES = ("baselines-0", "baselines-1", "baselines-2")
CANDIDATES = ("ps-0", "ps-1", "ps-2", "ps-3")
_TAINT = "evomerge.dev/test"
_TOLERATION = {"key": _TAINT, "operator": "Exists"}
_LOST_AND_FAILED = {"attempts": 3, "disruptions": 1, "failures": 1, "outcome": "Succeeded"}


def test_lost_pods_and_failed_pods_are_counted_apart_and_the_log_is_as_if_nothing_had_happened(
    cluster: Cluster,
    installed: Release,
    light_search: Callable[..., Search],
    operator: OperatorProcess,
    s3: S3Server,
    undisturbed: Search,
) -> None:
    """First all seven pods are lost at once, then two of them are lost and five fail, then all go well."""
    undisturbed.succeeds()  # the taint would disturb it
    operators = _operators(cluster, installed)
    faults = {
        "evaluate/1": "hang",
        "baselines/0/2": "pod-hang",
        "baselines/1/2": "pod-hang",
        "baselines/2/2": "pod-exit:3",
        "ps/0/2": "oom",
        "ps/1/2": "pod-oom",
        "ps/2/2": "exit",
        "ps/3/2": "pod-garbage",
        "conclude/1": "exit",
        "export/1": "garbage",
    }
    search = light_search("faults", parallelism=7, faults=faults)
    names = {*(f"baselines-{i:05d}" for i in range(3)), *(f"ps-{i:05d}" for i in range(4))}
    with witness(cluster, search.namespace) as seen:
        until(search, lambda: at_work(search) == {f"{name}-a1" for name in names})
        # Pods that are made from now on tolerate what drives away those that are there.
        search.patch({"worker": {"podTemplate": {"spec": {"tolerations": [_TOLERATION]}}}})
        search.wait(lambda status: status["observedGeneration"] == 2)
        with _tainted(cluster):
            by_hand, by_eviction = (pod_at_work(search, f"baselines-0000{index}-a2") for index in (0, 1))
            options = [f"--namespace={search.namespace}", "--wait=false"]
            cluster.kubectl("delete", "pod", by_hand, "--grace-period=1", *options)
            _evict(cluster, search.namespace, by_eviction)
            status = search.succeeds(seconds=300)

        assert {seen.disruption(search, f"{name}-a1") for name in names} == {"DeletionByTaintManager"}
        assert seen.disruption(search, "baselines-00000-a2") is None
        assert seen.disruption(search, "baselines-00001-a2") == "EvictionByEvictionAPI"
        assert seen.exit(search, "ps-00001-a2") == ("OOMKilled", 137)
    assert _operators(cluster, installed) == operators, "an operator that tolerates a taint is left alone"
    twice_lost = {"attempts": 3, "disruptions": 2, "outcome": "Succeeded"}
    told = dict.fromkeys(BASELINES[:2], twice_lost) | dict.fromkeys((BASELINES[2], *CANDIDATES), _LOST_AND_FAILED)
    assert counted(search) == told
    once, failed_once = {"succeeded": 1}, {"failures": 1, "succeeded": 1}
    assert steps(status) == {"prepare": once, "select": once, "conclude": failed_once, "export": failed_once}
    assert _reasons(operator) == {
        "baselines-00002-a2": "Crashed",
        "ps-00000-a2": "OutOfMemory",
        "ps-00001-a2": "OutOfMemory",
        "ps-00002-a2": "Crashed",
        "ps-00003-a2": "Garbage",
    }
    attempts = [f"{name}-a{attempt}" for name in names for attempt in (1, 2, 3)]
    made = ["prepare-a1", "select-a1", "conclude-a1", "conclude-a2", "export-a1", "export-a2"]
    assert job_creates(search) == Counter([*attempts, *made])
    assert log_of(s3, search) == log_of(s3, undisturbed)


def test_what_fails_twice_has_failed_and_ends_the_search_only_beyond_its_budget(
    cluster: Cluster, light_search: Callable[..., Search], operator: OperatorProcess, images: Images
) -> None:
    """Four searches side by side; of the first one, candidate 2 is told right only by its second pod."""
    faults = {"baselines/2": "exit", "ps/0": "garbage", "ps/1": "pod-oom"}
    within = light_search("within", candidates=3, parallelism=6, worker=_forged(images.light_worker, faults))
    slow = dict.fromkeys((f"baselines/{index}" for index in range(3)), "sleep:5")
    beyond = light_search("beyond", candidates=1, faults=slow | {"ps/0": "hang"}, budget={"failures": 0})
    lost = light_search("lost", faults={"prepare": "hang"}, budget={"disruptions": 0})
    until(beyond, lambda: jobs_of(beyond).keys() == {f"baselines-{index:05d}-a1" for index in range(3)})
    beyond.patch({"worker": {"timeoutSeconds": 3}})  # for the candidate, which comes when a baseline has ended
    hung = light_search("hung", worker=_short_lived({"prepare": "pod-hang"}))

    cluster.kubectl("delete", "pod", pod_at_work(lost, "prepare-a1"), f"--namespace={lost.namespace}", "--wait=false")
    status = lost.fails()
    assert (status["reason"], status["message"]) == (
        "TooManyDisruptions",
        "1 attempt lost its pod, more than spec.budget.disruptions (0) allows; the last: the pod was deleted",
    )
    assert steps(status) == {"prepare": {"disruptions": 1}}

    status = hung.fails()
    assert (status["reason"], status["message"]) == (
        "PrepareFailed",
        "prepare: the pod ran longer than its tasks may take together (TimedOut)",
    )
    assert steps(status) == {"prepare": {"failures": 2}}

    status = beyond.fails()
    assert status["reason"] == "TooManyFailures"
    assert status["message"] == (
        "1 candidate failed (1 TimedOut), more than spec.budget.failures (0) allows; "
        "candidate 0 said: took longer than 3 s"
    )
    assert counted(beyond)["ps-0"] == {"attempts": 2, "failures": 2, "outcome": "Failed", "reason": "TimedOut"}
    complete = next(c for c in status["conditions"] if c["type"] == "Complete")
    assert (complete["status"], complete["reason"]) == ("False", "TooManyFailures")

    status = within.succeeds()
    assert status["conclusion"]["winner"] == 2
    assert counted(within) == {
        "baselines-0": {"attempts": 1, "outcome": "Succeeded"},
        "baselines-1": {"attempts": 1, "outcome": "Succeeded"},
        "baselines-2": {"attempts": 2, "failures": 2, "outcome": "Failed", "reason": "Crashed"},
        "ps-0": {"attempts": 2, "failures": 2, "outcome": "Failed", "reason": "Garbage"},
        "ps-1": {"attempts": 2, "failures": 2, "outcome": "Failed", "reason": "OutOfMemory"},
        "ps-2": {"attempts": 2, "failures": 1, "outcome": "Succeeded"},
    }
    assert _reasons(operator)["ps-00002-a1"] == "Crashed", "its scores came with exit code 1 and from elsewhere"
    for search in (within, beyond, lost, hung):
        until(search, lambda search=search: not jobs_of(search) and not search.children("pods"))


def _forged(image: str, faults: dict[str, str]) -> dict[str, object]:
    """A worker whose pod for `ps-00002-a1` tells its scores twice and wrongly: the worker's container with exit code 1,
    another one with 0."""
    serve = (
        'evomerge-worker serve /task/tasks.jsonl --digest "sha256:$(sha256sum < /task/tasks.jsonl | cut -c1-64)" '
        "--note /dev/termination-log"
    )
    only_there = "case $HOSTNAME in *-ps-00002-a1-*)"
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    secrets = [{"name": k, "valueFrom": {"secretKeyRef": {"name": "s3-credentials", "key": k}}} for k in keys]
    forger = {
        "name": "another",
        "image": image,
        "command": ["sh", "-c", f"{only_there} {serve};; esac"],
        "env": [{"name": "HOME", "value": "/tmp"}, *secrets],
        "volumeMounts": [{"name": "task", "mountPath": "/task"}, {"name": "tmp", "mountPath": "/tmp"}],
        "resources": {"limits": {"memory": "256Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    worker = {
        "name": "worker",
        "command": ["sh", "-c", f"{serve}; code=$?; {only_there} exit 1;; esac; exit $code"],
        "env": [{"name": "LIGHT_FAULTS", "value": json.dumps(faults)}],
    }
    return {"podTemplate": {"spec": {"containers": [worker, forger]}}}


def _short_lived(faults: dict[str, str]) -> dict[str, object]:
    """A worker whose pods may live for five seconds."""
    container = {"name": "worker", "env": [{"name": "LIGHT_FAULTS", "value": json.dumps(faults)}]}
    return {
        "podTemplate": {
            "spec": {"activeDeadlineSeconds": 5, "terminationGracePeriodSeconds": 1, "containers": [container]}
        }
    }


@contextmanager
def _tainted(cluster: Cluster) -> Iterator[None]:
    """All pods are driven from the node, but those that tolerate it."""
    cluster.kubectl("taint", "nodes", "--all", f"{_TAINT}=:NoExecute")
    try:
        yield
    finally:
        cluster.kubectl("taint", "nodes", "--all", f"{_TAINT}:NoExecute-")


def _evict(cluster: Cluster, namespace: str, pod: str) -> None:
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": namespace},
        "deleteOptions": {"gracePeriodSeconds": 1},
    }
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    cluster.kubectl("create", f"--raw={path}", "--filename=-", stdin=json.dumps(eviction))


def _operators(cluster: Cluster, release: Release) -> set[str]:
    """The operators' pods, by UID."""
    pods = cluster.get("pods", f"--namespace={release.namespace}", "--selector=app.kubernetes.io/name=evomerge")
    return {pod["metadata"]["uid"] for pod in pods["items"]}


def _reasons(operator: OperatorProcess) -> dict[str, str]:
    """What the operator said of first failures, by attempt."""
    lines = [line.split() for line in operator.log.read_text().splitlines() if "it is tried once more" in line]
    found = {}
    for words in lines:
        at = words.index("failed")
        found["-".join(words[at - 1].split("-")[2:])] = words[at + 1].strip("(:")
    return found
