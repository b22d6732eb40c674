"""Where and when pods run is the cluster's affair: queues, accelerators, and what a pod template adds."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from attempts import at_work, counted, jobs_of, pod_at_work, prefix_of, until
from audit_log import job_creates
from kubernetes_cluster import Cluster
from operator_process import OperatorProcess
from searches import Search

_QUEUE = "kueue.x-k8s.io/queue-name"
_START_SECONDS = 30
_GPU = "nvidia.com/gpu"
_NOBODY = 65532
Document = dict[str, Any]


def test_queued_time_burns_no_budget_and_only_the_queue_decides_when_a_job_runs(
    cluster: Cluster, light_search: Callable[..., Search], operator: OperatorProcess, namespace: str
) -> None:
    """Jobs with a queue's label are suspended as Kueue does it, until the test lets them go."""
    template = _template({"ps/0/1": "hang"}, labels={_QUEUE: "team"})
    with _queue(cluster, namespace):
        search = light_search(
            "queued",
            candidates=1,
            parallelism=4,
            worker={"podTemplate": template, "startSeconds": _START_SECONDS},
            budget={"deadline": "25s"},
        )
        waiting = search.wait(lambda status: status.get("reason") == "Queued")
        assert waiting["phase"] == "Waiting"
        assert waiting["message"] == "1 pod cannot start: the queue has not admitted the Job yet"
        job = jobs_of(search)["prepare-a1"]
        time.sleep(max(0.0, _START_SECONDS + 3 - _age(job)))  # longer than a pod may take to start, and the deadline
        assert {name: j["metadata"]["uid"] for name, j in jobs_of(search).items()} == {
            "prepare-a1": job["metadata"]["uid"]
        }
        waiting = search.status()
        assert (waiting["reason"], waiting.get("activeSince")) == ("Queued", None)
        assert waiting["activeSeconds"] < 10

        search.patch({"budget": {"deadline": "1h"}})
        _admit(search)
        evaluations = {*(f"baselines-{i:05d}-a1" for i in range(3)), "ps-00000-a1"}
        until(search, lambda: jobs_of(search).keys() == evaluations)
        assert all(_is_held(job) for job in jobs_of(search).values())
        _admit(search)
        pod_at_work(search, "ps-00000-a1")
        _hold(search, "ps-00000-a1")  # the queue takes back what it gave
        until(search, lambda: "ps-00000-a2" in jobs_of(search))
        search.wait(lambda status: _admit(search) or status.get("phase") == "Succeeded")

    assert counted(search)["ps-0"] == {"attempts": 2, "disruptions": 1, "outcome": "Succeeded"}
    steps = ["prepare-a1", "select-a1", "conclude-a1", "export-a1"]
    assert job_creates(search) == Counter([*evaluations, "ps-00000-a2", *steps])
    user = f"system:serviceaccount:{namespace}:evomerge"
    verbs = {e["verb"] for e in cluster.audit() if e["user"]["username"] == user and _is_of(e, "jobs")}
    assert verbs <= {"create", "delete", "get", "list", "watch"}, "so it never wrote spec.suspend"


def test_a_search_on_accelerators_runs_as_many_pods_as_there_are_and_says_when_there_are_none(
    cluster: Cluster, light_search: Callable[..., Search], operator: OperatorProcess
) -> None:
    limits = {"memory": "256Mi", _GPU: "1"}
    worker = {"resources": {"requests": {"cpu": "10m"}, "limits": limits}}
    search = light_search("gpus", candidates=1, parallelism=4, faults={"evaluate": "sleep:4"}, worker=worker)
    waiting = search.wait(lambda status: status.get("phase") == "Waiting", seconds=60)
    assert waiting["reason"] == "Unschedulable"
    assert waiting["message"].startswith("1 pod cannot start: 0/1 nodes are available")
    assert f"Insufficient {_GPU}" in waiting["message"]
    progressing = next(c for c in waiting["conditions"] if c["type"] == "Progressing")
    assert (progressing["status"], progressing["reason"]) == ("False", "Unschedulable")
    with _accelerators(cluster, 2):
        until(search, lambda: len(jobs_of(search)) == 4 and len(at_work(search)) == 2)
        assert sorted(_phases(search).values()) == ["Pending", "Pending", "Running", "Running"]
        most = [2]
        search.wait(lambda status: most.append(len(at_work(search))) or status["phase"] == "Succeeded")
    assert max(most) == 2
    assert {c["attempts"] for c in counted(search).values()} == {1}


def test_a_pod_is_what_the_template_and_the_cache_make_it_restricted_and_without_a_token(
    cluster: Cluster,
    light_search: Callable[..., Search],
    operator: OperatorProcess,
    namespace: str,
    volume: Path,
    tmp_path: Path,
) -> None:
    cluster.kubectl("create", "serviceaccount", "identity", f"--namespace={namespace}")
    template = _template({"prepare": "hang"}, labels={"team": "vision", "evomerge.dev/uid": "forged"})
    template["metadata"]["annotations"] = {"example.org/cost": "42"}
    template["spec"] |= {
        "serviceAccountName": "identity",
        "imagePullSecrets": [{"name": "registry"}],
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "accelerators", "operator": "Exists"}],
        "terminationGracePeriodSeconds": 1,
    }
    template["spec"]["containers"][0]["env"].append({"name": "TRANSFORMERS_VERBOSITY", "value": "error"})
    claimed = light_search("claimed", worker=_cached(persistentVolumeClaim={"claimName": "cache"}))
    dressed = light_search("dressed", worker={"podTemplate": template, "cache": {"emptyDir": {"sizeLimit": "64Mi"}}})

    _check_template(cluster, dressed, _pod(cluster, dressed))
    pod = _pod(cluster, claimed)
    assert _volume(pod, "cache") == {"persistentVolumeClaim": {"claimName": "cache"}}
    assert pod["spec"]["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    _write_to_cache(cluster, pod)
    assert (volume / "written").stat().st_gid == _NOBODY

    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)  # so that the workers' user may write there
    level = "pod-security.kubernetes.io/enforce=privileged"
    cluster.kubectl("label", "namespace", namespace, level, "--overwrite")
    local = light_search("local", worker=_cached(hostPath={"path": str(shared)}))
    _write_to_cache(cluster, _pod(cluster, local))
    assert [str(f.relative_to(shared)) for f in shared.rglob("*")] == [namespace, f"{namespace}/written"]


def _check_template(cluster: Cluster, search: Search, pod: Document) -> None:
    metadata, spec, worker = pod["metadata"], pod["spec"], pod["spec"]["containers"][0]
    labels = {
        "team": "vision",
        "app.kubernetes.io/managed-by": "evomerge",
        "app.kubernetes.io/name": "evomerge-worker",
        "evomerge.dev/name": "dressed",
        "evomerge.dev/uid": search.document()["metadata"]["uid"],
        "evomerge.dev/stage": "prepare",
        "evomerge.dev/task": "prepare",
    }
    assert labels.items() <= metadata["labels"].items()
    assert labels.items() <= jobs_of(search)["prepare-a1"]["metadata"]["labels"].items()
    assert metadata["annotations"]["example.org/cost"] == "42"
    assert (spec["serviceAccountName"], spec["imagePullSecrets"]) == ("identity", [{"name": "registry"}])
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert {"key": "accelerators", "operator": "Exists"} in spec["tolerations"]
    assert [c["name"] for c in spec["containers"]] == ["worker"]
    env = {e["name"]: e.get("value") for e in worker["env"]}
    assert (env["TRANSFORMERS_VERBOSITY"], env["EVOMERGE_CACHE"]) == ("error", "/cache")
    assert _volume(pod, "cache") == {"emptyDir": {"sizeLimit": "64Mi"}}
    assert [m["mountPath"] for m in worker["volumeMounts"]] == ["/task", "/cache", "/tmp"], "no token"
    assert spec["automountServiceAccountToken"] is False
    level = cluster.get(f"namespace/{search.namespace}")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert level == "restricted"


def _template(faults: dict[str, str], **metadata: Any) -> Document:
    container = {"name": "worker", "env": [{"name": "LIGHT_FAULTS", "value": json.dumps(faults)}]}
    return {"metadata": metadata, "spec": {"containers": [container]}}


def _cached(**cache: Any) -> Document:
    return {"podTemplate": _template({"prepare": "hang"}), "cache": cache}


def _pod(cluster: Cluster, search: Search) -> Document:
    name = pod_at_work(search, "prepare-a1")
    pod: Document = cluster.get(f"pod/{name}", f"--namespace={search.namespace}")
    return pod


def _volume(pod: Document, name: str) -> Document:
    return next(
        {k: v for k, v in volume.items() if k != "name"} for volume in pod["spec"]["volumes"] if volume["name"] == name
    )


def _write_to_cache(cluster: Cluster, pod: Document) -> None:
    """As the worker's user, in its container."""
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    cluster.kubectl("exec", name, f"--namespace={namespace}", "--container=worker", "--", "touch", "/cache/written")


@pytest.fixture
def volume(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[Path]:
    """A folder of the node, to which the claim `cache` is bound."""
    if not cluster.is_ours:
        pytest.skip("the node's folders are out of reach")
    folder = tmp_path / "volume"
    folder.mkdir()
    name, size = f"cache-{namespace}", {"storage": "64Mi"}
    anywhere = {"matchExpressions": [{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}]}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": size,
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "by-hand",
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [anywhere]}},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "cache", "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "by-hand",
            "volumeName": name,
            "resources": {"requests": size},
        },
    }
    cluster.apply([volume, claim])
    yield folder
    cluster.kubectl("delete", f"persistentvolume/{name}", "--wait=false")


@contextmanager
def _queue(cluster: Cluster, namespace: str) -> Iterator[None]:
    """What Kueue's webhook does: Jobs with a queue's label begin suspended."""
    labelled = f"has(object.metadata.labels) && '{_QUEUE}' in object.metadata.labels"
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": f"queue-{namespace}"},
        "spec": {
            "matchConstraints": {
                "resourceRules": [
                    {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
                ]
            },
            "matchConditions": [{"name": "labelled", "expression": labelled}],
            "reinvocationPolicy": "Never",
            "mutations": [
                {
                    "patchType": "ApplyConfiguration",
                    "applyConfiguration": {"expression": "Object{spec: Object.spec{suspend: true}}"},
                }
            ],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": f"queue-{namespace}"},
        "spec": {
            "policyName": f"queue-{namespace}",
            "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}},
        },
    }
    cluster.apply([policy, binding])
    try:
        _until_the_queue_holds(cluster, namespace)
        yield
    finally:
        for document in (policy, binding):
            cluster.kubectl("delete", str(document["kind"]), f"queue-{namespace}")


def _until_the_queue_holds(cluster: Cluster, namespace: str) -> None:
    pod = {"restartPolicy": "Never", "containers": [{"name": "none", "image": "none"}]}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "probe", "namespace": namespace, "labels": {_QUEUE: "team"}},
        "spec": {"template": {"spec": pod}},
    }
    end = time.monotonic() + 30
    while True:
        answer = cluster.kubectl("create", "--filename=-", "--dry-run=server", "--output=json", stdin=json.dumps(job))
        if json.loads(answer)["spec"].get("suspend"):
            return
        assert time.monotonic() < end, "the policy is not in force"
        time.sleep(0.2)


def _admit(search: Search) -> None:
    """Let every Job go that is held back."""
    for name, job in jobs_of(search).items():
        if _is_held(job):
            _suspend(search, name, suspend=False)


def _hold(search: Search, attempt: str) -> None:
    _suspend(search, attempt, suspend=True)


def _suspend(search: Search, attempt: str, *, suspend: bool) -> None:
    patch = json.dumps({"spec": {"suspend": suspend}})
    job, namespace = f"job/{prefix_of(search)}{attempt}", f"--namespace={search.namespace}"
    search.cluster.kubectl("patch", job, namespace, "--type=merge", f"--patch={patch}")


def _is_held(job: Document) -> bool:
    return bool(job["spec"].get("suspend"))


def _age(job: Document) -> float:
    return time.time() - datetime.fromisoformat(job["metadata"]["creationTimestamp"]).timestamp()


def _is_of(entry: Document, resource: str) -> bool:
    return bool(entry.get("objectRef", {}).get("resource") == resource)


@contextmanager
def _accelerators(cluster: Cluster, count: int) -> Iterator[None]:
    """Accelerators on the node, as its status tells."""
    node = cluster.get("nodes")["items"][0]["metadata"]["name"]
    place = f"/status/capacity/{_GPU.replace('/', '~1')}"
    _patch_node(cluster, node, [{"op": "add", "path": place, "value": str(count)}])
    try:
        yield
    finally:
        _patch_node(cluster, node, [{"op": "remove", "path": place}])


def _patch_node(cluster: Cluster, node: str, patch: list[Document]) -> None:
    cluster.kubectl("patch", f"node/{node}", "--subresource=status", "--type=json", f"--patch={json.dumps(patch)}")


def _phases(search: Search) -> dict[str, str]:
    return {pod["metadata"]["name"]: pod["status"]["phase"] for pod in search.children("pods")}
