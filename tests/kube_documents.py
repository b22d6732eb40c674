"""A cluster's EvoMerge, Jobs and pods as the API server tells of them, for tests of what is decided from them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from documents import document, prepared, stage
from evomerge_contract.manifest import EvoMerge
from evomerge_contract.report import PrepareResult
from evomerge_operator.kube.jobs import Attempt, Defaults, make_job
from evomerge_operator.manifest import parse_manifest
from evomerge_operator.plan.run import default_names
from evomerge_operator.planning import calls
from evomerge_operator.services.known import Known
from evomerge_operator.services.live_run import LiveRun

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
DEFAULTS = Defaults(image="worker:1", template={})
UID = "11112222-0000-4000-8000-000000000000"
_JSONL = {split: f"s3://data/{split}.jsonl" for split in ("search", "select", "test")}
_OBJECTIVE = {"name": "sums", "jsonl": _JSONL, "metric": "exact_match", "maxNewTokens": 4}
Document = dict[str, Any]


def time(seconds: float) -> str:
    """NOW and so many seconds, as Kubernetes writes it."""
    return (NOW + timedelta(seconds=seconds)).isoformat(timespec="seconds").replace("+00:00", "Z")


def evomerge(status: Document | None = None, generation: int = 1, version: int = 1, **spec: Any) -> Document:
    """An EvoMerge of two models and eight candidates in the cluster."""
    on_cluster = {
        "models": [{"name": name, "uri": f"s3://models/{name}"} for name in ("a", "b")],
        "evaluation": {"objectives": [_OBJECTIVE]},
        "stages": [stage(candidates=8, lag=8)],
        "parallelism": 2,
        "export": {"uri": "s3://out/tiny"},
    }
    metadata = {"namespace": "ns", "uid": UID, "generation": generation, "resourceVersion": str(version)}
    made = document(**on_cluster | spec)
    made["metadata"] |= metadata
    return made | ({"status": status} if status is not None else {})


def known_of(made: Document, *, searching: bool = False, pinned: bool = True) -> Known:
    """What is known of it after a first look; `searching`: it is prepared too, and no candidate is there yet.

    Without `pinned`, it was prepared before baselines were pinned.
    """
    known = Known.of(made)
    known.manifest = manifest_of(made)
    if searching:
        known.prepared = prepared_of(made)
        known.pinned = default_names(known.manifest, prepared_of(made)) if pinned else None
        known.live = live_of(known)
    return known


def live_of(known: Known) -> LiveRun:
    """The run of what is prepared, before its first candidate."""
    assert known.manifest is not None
    assert known.prepared is not None
    begun = calls.begin(known.manifest, known.prepared, "s3://out/tiny/reports", known.pinned)
    assert not isinstance(begun, list)
    return LiveRun(*begun)


def manifest_of(made: Document) -> EvoMerge:
    """Its manifest."""
    plain = {key: made[key] for key in ("apiVersion", "kind", "spec")}
    metadata = {key: made["metadata"][key] for key in ("name", "namespace")}
    return parse_manifest(plain | {"metadata": metadata}, source="tiny", folder=None)


def prepared_of(made: Document) -> PrepareResult:
    """What prepare would say of it."""
    return prepared(manifest_of(made))


def job(
    known: Known, step: str = "ps", index: int | None = 0, attempt: int = 1, uid: str = "job-1", **status: Any
) -> Document:
    """A Job as it was made here and then stored."""
    assert known.manifest is not None
    indices = () if index is None else (index,)
    made = make_job(
        known.parent,
        known.manifest.spec,
        Attempt(step, "evaluate" if indices else step, indices, (attempt,)),
        [],
        DEFAULTS,
    )
    made["metadata"] |= {"uid": uid, "creationTimestamp": time(0)}
    return made | {"status": status}


def pod(
    of: Document, uid: str = "pod-1", worker: Document | None = None, deleted: bool = False, **status: Any
) -> Document:
    """The pod of a Job; `worker` is the state of its container."""
    metadata: Document = {
        "uid": uid,
        "name": f"{of['metadata']['name']}-x",
        "ownerReferences": [{"kind": "Job", "name": of["metadata"]["name"], "uid": of["metadata"]["uid"]}],
    }
    if deleted:
        metadata["deletionTimestamp"] = time(9)
    if worker is not None:
        status["containerStatuses"] = [
            {"name": "mesh", "state": {"running": {"startedAt": time(1)}}},
            {"name": "worker", "state": worker},
        ]
    return {"metadata": metadata, "spec": {"nodeName": "node1"}, "status": status}


def terminated(code: int, reason: str = "Error", message: str = "") -> Document:
    """The state of a container that has ended."""
    state = {"exitCode": code, "reason": reason, "startedAt": time(5), "finishedAt": time(8), "message": message}
    return {"terminated": state}
