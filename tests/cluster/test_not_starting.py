"""Pods that cannot start: within a minute a person is told why, slots are given back, and the search goes on by itself
once the cause is gone."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from image_references import Images
from kubernetes_cluster import Cluster, KubectlError
from operator_process import OperatorProcess
from releases import Release
from s3 import S3Server
from searches import BUCKET, Search, light_manifest

TOLD_WITHIN = 60.0
CURED_WITHIN = 90.0
"""The Job controller waits up to a minute before it asks for a refused pod again."""
FEW: Mapping[str, Any] = {"candidates": 1, "parallelism": 1}
START_SECONDS = 30
LABEL = "evomerge.dev/test-speed"
"""Of the node, while a test wants it."""


@dataclass(frozen=True)
class Place:
    """A namespace of the tests' own, with the S3 server's keys."""

    cluster: Cluster
    namespace: str

    def apply(self, kind: str, name: str, spec: Mapping[str, Any], version: str = "v1") -> None:
        """Apply an object of this namespace (or of none: those are named by it)."""
        metadata = {"name": name, "namespace": self.namespace}
        self.cluster.apply({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec})

    def kubectl(self, *arguments: str) -> None:
        """kubectl in this namespace."""
        self.cluster.kubectl(*arguments, f"--namespace={self.namespace}")

    def secret(self, name: str, s3: S3Server) -> None:
        """Create a Secret with the S3 server's keys."""
        keys = {key: s3.environment[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        metadata = {"name": name, "namespace": self.namespace}
        self.cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": keys})


@dataclass(frozen=True)
class Obstacle:
    """What keeps pods from starting, in a namespace of its own or the shared one, and what is said of it."""

    name: str
    reasons: tuple[str, ...]
    words: str
    cure: Callable[[Place, Search, S3Server], None]
    place: Callable[[Place], None] = lambda place: None
    spec: Mapping[str, Any] = field(default_factory=dict)
    worker: Mapping[str, Any] = field(default_factory=dict)
    apart: bool = False


def _quota(hard: Mapping[str, str]) -> Callable[[Place], None]:
    return lambda place: place.apply("ResourceQuota", "tight", {"hard": hard})


def _remove(*what: str) -> Callable[[Place, Search, S3Server], None]:
    return lambda place, search, s3: place.kubectl("delete", *what)


def _limit_range(place: Place) -> None:
    place.apply("LimitRange", "small", {"limits": [{"type": "Container", "max": {"memory": "64Mi"}}]})


def _policy(place: Place) -> None:
    """Refuse Jobs of the search `policy`; returns when that is so."""
    name = f"{place.namespace}-no-jobs"
    version = "admissionregistration.k8s.io/v1"
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
    here = {"matchLabels": {"kubernetes.io/metadata.name": place.namespace}}
    spec = {
        "matchConstraints": {"resourceRules": [rule], "namespaceSelector": here},
        "validations": [{"expression": "false", "message": "no Jobs before the budget is signed"}],
    }
    for kind, contents in (
        ("ValidatingAdmissionPolicy", spec),
        ("ValidatingAdmissionPolicyBinding", {"policyName": name, "validationActions": ["Deny"]}),
    ):
        place.cluster.apply({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": contents})
    end = time.monotonic() + 30
    while True:
        try:
            place.kubectl("create", "job", "probe", "--image=none", "--dry-run=server")
        except KubectlError:
            return
        assert time.monotonic() < end, "the policy is not in force"
        time.sleep(0.5)


def _no_policy(place: Place, search: Search, s3: S3Server) -> None:
    for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
        place.cluster.kubectl("delete", kind, f"{place.namespace}-no-jobs")


def _label_node(place: Place, search: Search, s3: S3Server) -> None:
    _set_label(place.cluster, f"{LABEL}=fast")


def _set_label(cluster: Cluster, label: str) -> None:
    cluster.kubectl("label", "--overwrite", "nodes", "--all", label)


OBSTACLES = [
    Obstacle(
        "missing-secret",
        ("CreateContainerConfigError",),
        '1 pod cannot start: secret "not-there" not found; see the Secrets and ConfigMaps that spec.storage names',
        lambda place, search, s3: place.secret("not-there", s3),
        spec={"secretName": "not-there"},
    ),
    Obstacle(
        "missing-image",
        ("ErrImagePull", "ImagePullBackOff"),
        "localhost/no-such-worker:1",
        lambda place, search, s3: search.patch({"worker": {"image": None}}),
        worker={"image": "localhost/no-such-worker:1"},
    ),
    Obstacle(
        "no-node",
        ("Unschedulable",),
        "1 pod cannot start: 0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector",
        _label_node,
        worker={"podTemplate": {"spec": {"nodeSelector": {LABEL: "fast"}}}},
    ),
    Obstacle(
        "pod-security",
        ("FailedCreate",),
        'is forbidden: violates PodSecurity "restricted:latest": privileged (container "worker" must not set',
        lambda place, search, s3: place.cluster.kubectl(
            "label", "--overwrite", "namespace", place.namespace, "pod-security.kubernetes.io/enforce=privileged"
        ),
        worker={
            "podTemplate": {
                "spec": {
                    "containers": [
                        {"name": "worker", "securityContext": {"privileged": True, "allowPrivilegeEscalation": True}}
                    ]
                }
            }
        },
        apart=True,
    ),
    Obstacle(
        "quota-of-pods",
        ("FailedCreate",),
        "is forbidden: exceeded quota: tight, requested: pods=1, used: pods=0, limited: pods=0",
        _remove("resourcequota", "tight"),
        _quota({"pods": "0"}),
        apart=True,
    ),
    Obstacle(
        "quota-of-jobs",
        ("JobRefused",),
        "exceeded quota: tight, requested: count/jobs.batch=1, used: count/jobs.batch=0, limited: count/jobs.batch=0; "
        "it is asked again every 30 s",
        _remove("resourcequota", "tight"),
        _quota({"count/jobs.batch": "0"}),
        apart=True,
    ),
    Obstacle(
        "limit-range",
        ("FailedCreate",),
        "is forbidden: maximum memory usage per Container is 64Mi, but limit is 256Mi",
        _remove("limitrange", "small"),
        _limit_range,
        apart=True,
    ),
    Obstacle(
        "policy",
        ("JobRefused",),
        "denied request: no Jobs before the budget is signed; it is asked again every 30 s",
        _no_policy,
        _policy,
        apart=True,
    ),
]


@pytest.fixture
def places(
    cluster: Cluster, images: Images, helm: Callable[..., str], installed: Release, namespace: str, s3: S3Server
) -> Iterator[dict[str, Place]]:
    """A place for every obstacle, all served by one release."""
    s3.make_bucket(BUCKET)
    names = {o.name: f"{namespace}-{o.name}" if o.apart else namespace for o in OBSTACLES}
    apart = [name for name in names.values() if name != namespace]
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply(
        [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": n, "labels": restricted}} for n in apart]
    )
    values = {"replicas": 0, "namespaces": [namespace, *apart], "crds": {"install": False}}
    Release.install(cluster, helm, images, namespace, values=values)
    made = {name: Place(cluster, where) for name, where in names.items()}
    for place in made.values():
        place.secret("s3-credentials", s3)
    yield made
    _set_label(cluster, f"{LABEL}-")
    cluster.kubectl("delete", "namespace", "--wait=false", *apart)


def test_why_pods_do_not_start_is_told_within_a_minute_and_its_cure_is_all_that_is_needed(
    places: Mapping[str, Place],
    images: Images,
    s3: S3Server,
    operator_process: Callable[..., OperatorProcess],
    namespace: str,
) -> None:
    served = ",".join(sorted({place.namespace for place in places.values()}))
    # The operator's own worker image is the good one: an EvoMerge that names none gets it.
    operator = operator_process(
        "evomerge", namespace, EVOMERGE_NAMESPACES=served, EVOMERGE_WORKER_IMAGE=images.light_worker
    )
    operator.wait_until_ready()
    searches = {o.name: _hindered(o, places[o.name], images, s3) for o in OBSTACLES}
    applied = time.monotonic()
    for obstacle in OBSTACLES:
        _tells(searches[obstacle.name], obstacle, applied + TOLD_WITHIN)
    for obstacle in OBSTACLES:
        obstacle.cure(places[obstacle.name], searches[obstacle.name], s3)
    for search in searches.values():
        status = search.wait(lambda status: status["phase"] != "Waiting", CURED_WITHIN)
        assert status["steps"].get("prepare", {}).get("failures", 0) == 0


def test_a_mistyped_image_in_mid_search_frees_its_slots_backs_off_and_costs_nothing_once_it_is_mended(
    light_search: Callable[..., Search], images: Images, operator: OperatorProcess
) -> None:
    worker = {"startSeconds": START_SECONDS, "image": images.light_worker}
    search = light_search("typo", candidates=2, parallelism=2, worker=worker)
    search.wait(lambda status: status.get("stage") == "ps")
    search.patch({"worker": {"image": "localhost/evomerge-wroker:1"}})
    status = search.wait(lambda status: status.get("reason") in ("ErrImagePull", "ImagePullBackOff"), TOLD_WITHIN)
    assert "localhost/evomerge-wroker:1" in status["message"]
    assert "see spec.worker.image" in status["message"]
    status = search.wait(lambda status: "given up" in status.get("message", ""), START_SECONDS + 30)
    given_up = time.monotonic()
    assert search.children("jobs") == []
    assert status["phase"] == "Waiting"
    assert re.search(r"given up after 30 s, tried again at \d\d:\d\d:\d\d UTC$", status["message"])
    assert "localhost/evomerge-wroker:1" in status["message"]
    while not (again := search.children("jobs")):
        assert time.monotonic() < given_up + 60
        time.sleep(1)
    assert time.monotonic() - given_up >= 25
    assert {job["metadata"]["name"].rpartition("-")[2] for job in again} <= {"a2", "a3"}
    search.wait(lambda status: "given up" not in status.get("message", ""), 30)
    search.patch({"worker": {"image": images.light_worker}})
    mended = time.monotonic()
    status = search.succeeds(90)
    assert time.monotonic() - mended < 90
    told = [c["status"] for c in search.candidates().values()]
    assert all((c["outcome"], c["failures"], c["disruptions"]) == ("Succeeded", 0, 0) for c in told)
    assert sum(c["waits"] for c in told) >= 2


def _hindered(obstacle: Obstacle, place: Place, images: Images, s3: S3Server) -> Search:
    """Put the obstacle there, then a search before it."""
    obstacle.place(place)
    manifest = light_manifest(obstacle.name, place.namespace, images.light_worker, s3, **FEW)
    manifest["spec"]["storage"]["s3"] |= obstacle.spec
    manifest["spec"]["worker"] |= obstacle.worker
    return Search.apply(place.cluster, manifest)


def _tells(search: Search, obstacle: Obstacle, until: float) -> None:
    """Status, condition and Event have the reason and the words in time."""
    status = search.wait(lambda status: status.get("reason") in obstacle.reasons, max(1.0, until - time.monotonic()))
    assert status["phase"] == "Waiting"
    assert obstacle.words in status["message"], obstacle.name
    conditions = {c["type"]: c for c in status["conditions"]}
    assert (conditions["Progressing"]["status"], conditions["Progressing"]["reason"]) == ("False", status["reason"])
    assert obstacle.words in conditions["Progressing"]["message"]
    described = search.cluster.kubectl("describe", f"evomerge/{search.name}", f"--namespace={search.namespace}")
    assert re.search(rf"Warning +{status['reason']} ", described), obstacle.name
    shown = search.cluster.kubectl("get", f"evomerge/{search.name}", f"--namespace={search.namespace}")
    assert status["reason"] in shown
