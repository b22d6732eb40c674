"""Jobs: one attempt each, whose pod carries out one or more tasks."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubernetes.utils import parse_quantity

from evomerge_contract.manifest import Cache, EvoMergeSpec, Worker
from evomerge_contract.task import Task
from evomerge_operator.kube.objects import (
    ATTEMPTS,
    CONFIG_MAPS,
    DIGEST,
    INDICES,
    STAGE_LABEL,
    TASK_LABEL,
    TASKS,
    Document,
    Parent,
    job_name,
)
from evomerge_operator.kube.templates import merged

CONTAINER = "worker"
METRICS_PORT = 9464
_ANNOTATION_BYTES = 32 * 1024
_NOBODY = 65532
_START_SECONDS = 900  # for the image's pull and the imports, beside the tasks' own limits
_FILE = "tasks.jsonl"


@dataclass(frozen=True)
class Defaults:
    """What the operator's own settings say of every worker."""

    image: str
    template: Mapping[str, Any]
    """A PodTemplateSpec under every manifest's own."""


@dataclass(frozen=True)
class Attempt:
    """What a Job is: an attempt at candidates of a stage, or at a step that is none (`indices` is empty)."""

    step: str
    """The stage, or prepare, conclude, export."""
    kind: str
    indices: tuple[int, ...]
    attempts: tuple[int, ...]

    def name(self, parent: Parent) -> str:
        """The Job's name: that of its first candidate and that one's attempt."""
        return job_name(parent, self.step, self.indices[0] if self.indices else None, self.attempts[0])


def tasks_text(tasks: Sequence[Task]) -> str:
    """The tasks as the worker reads them, a line each."""
    return "".join(task.model_dump_json(exclude_none=True, by_alias=True) + "\n" for task in tasks)


def digest_of_text(text: str) -> str:
    """`sha256:<hex>` of the text's UTF-8 bytes."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def tasks_config_map(parent: Parent, attempt: Attempt, text: str) -> Document | None:
    """The ConfigMap for tasks that are too long for an annotation."""
    if len(text.encode()) <= _ANNOTATION_BYTES:
        return None
    digest = digest_of_text(text)
    metadata = parent.metadata(_named(attempt.name(parent), digest)) | {"annotations": {DIGEST: digest}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True, "data": {_FILE: text}}


def facts_config_map(parent: Parent, number: int, part: str) -> Document:
    """The ConfigMap of one part of the run report, for the export."""
    digest = digest_of_text(part)
    metadata = parent.metadata(_named(f"{parent.prefix}-facts-{number:04d}", digest))
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata | {"annotations": {DIGEST: digest}},
        "immutable": True,
        "binaryData": {f"{number:04d}.gz": part},
    }


def _named(name: str, digest: str) -> str:
    """A name of this very content: what was left by a crash before the manifest was edited is not in its way."""
    return f"{name}-{digest.removeprefix('sha256:')[:8]}"


def make_job(
    parent: Parent,
    spec: EvoMergeSpec,
    attempt: Attempt,
    tasks: Sequence[Task],
    defaults: Defaults,
    facts: Sequence[str] = (),
) -> Document:
    """The Job of an attempt; `facts` names ConfigMaps that are to lie in /facts."""
    text = tasks_text(tasks)
    digest = digest_of_text(text)
    config_map = tasks_config_map(parent, attempt, text)
    long = config_map["metadata"]["name"] if config_map is not None else None
    labels = {"app.kubernetes.io/name": "evomerge-worker", STAGE_LABEL: attempt.step, TASK_LABEL: attempt.kind}
    seconds = sum(task.timeout_seconds for task in tasks) + max(_START_SECONDS, spec.worker.start_seconds)
    own = {
        "metadata": {
            "labels": parent.labels | labels,
            "annotations": {} if long else {TASKS: text},
        },
        "spec": _pod_spec(spec, long, digest, defaults, facts) | {"activeDeadlineSeconds": seconds},
    }
    template = merged(merged(own, defaults.template), spec.worker.pod_template.wire())
    metadata = parent.metadata(attempt.name(parent), **labels)
    template["metadata"]["labels"] |= metadata["labels"]  # ours last: by them Jobs and pods are found again
    metadata["labels"] = dict(template["metadata"]["labels"])
    metadata["annotations"] = {
        DIGEST: digest,
        INDICES: ",".join(map(str, attempt.indices)),
        ATTEMPTS: ",".join(map(str, attempt.attempts)),
        CONFIG_MAPS: ",".join([*([long] if long else []), *facts]),
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {"backoffLimit": 0, "podReplacementPolicy": "Failed", "template": template},
    }


def gpus(worker: Worker) -> int:
    """How many accelerators a pod of this worker holds."""
    limits = worker.resources.limits
    return sum(_whole(quantity) for name, quantity in limits.items() if name.endswith("/gpu"))


def _pod_spec(
    spec: EvoMergeSpec, config_map: str | None, digest: str, defaults: Defaults, facts: Sequence[str]
) -> Document:
    worker, s3 = spec.worker, spec.storage.s3
    volumes: list[Document] = [
        {"name": "task", **_task_volume(config_map)},
        {"name": "cache", **_cache_volume(worker.cache)},
        {"name": "tmp", "emptyDir": {}},
    ]
    mounts: list[Document] = [
        {"name": "task", "mountPath": "/task", "readOnly": True},
        {"name": "cache", "mountPath": "/cache"},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's own
    ]
    if worker.cache.host_path is not None:
        # A folder of the node is shared by all who may mount it: each namespace has its own part.
        mounts[1]["subPathExpr"] = "$(EVOMERGE_NAMESPACE)"
    if s3.ca_config_map:
        volumes.append({"name": "ca", "configMap": {"name": s3.ca_config_map}})
        mounts.append({"name": "ca", "mountPath": "/ca", "readOnly": True})
    if facts:
        sources = [{"configMap": {"name": name}} for name in facts]
        volumes.append({"name": "facts", "projected": {"sources": sources}})
        mounts.append({"name": "facts", "mountPath": "/facts", "readOnly": True})
    container = {
        "name": CONTAINER,
        "image": worker.image or defaults.image,
        "command": ["evomerge-worker", "serve", f"/task/{_FILE}", "--digest", digest, "--note", "/dev/termination-log"],
        "env": _environment(spec),
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT}],
        "resources": worker.resources.wire(),
        "volumeMounts": mounts,
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 10,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _NOBODY,
            "runAsGroup": _NOBODY,
            "fsGroup": _NOBODY,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }


def _task_volume(config_map: str | None) -> Document:
    if config_map is not None:
        return {"configMap": {"name": config_map}}
    field = {"fieldPath": f"metadata.annotations['{TASKS}']"}
    return {"downwardAPI": {"items": [{"path": _FILE, "fieldRef": field}]}}


def _cache_volume(cache: Cache) -> Document:
    if cache.persistent_volume_claim is not None:
        return {"persistentVolumeClaim": cache.persistent_volume_claim.wire()}
    if cache.host_path is not None:
        return {"hostPath": {"path": cache.host_path.path, "type": "DirectoryOrCreate"}}
    return {"emptyDir": cache.empty_dir.wire() if cache.empty_dir else {}}


def _environment(spec: EvoMergeSpec) -> list[Document]:
    plain = {
        "EVOMERGE_CACHE": "/cache",
        "EVOMERGE_WORKER_PORT": str(METRICS_PORT),
        "HOME": "/tmp",  # noqa: S108 - the pod's own
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
    }
    cache = spec.worker.cache
    if cache.empty_dir is not None and cache.empty_dir.size_limit is not None:
        # Told in words by the worker, instead of an eviction each time.
        plain["EVOMERGE_CACHE_BYTES"] = str(_whole(cache.empty_dir.size_limit))
    environment: list[Document] = [{"name": name, "value": value} for name, value in plain.items()]
    if spec.worker.cache.host_path is not None:
        field = {"fieldRef": {"fieldPath": "metadata.namespace"}}
        environment.insert(0, {"name": "EVOMERGE_NAMESPACE", "valueFrom": field})
    s3 = spec.storage.s3
    if s3.secret_name:
        environment += [
            _secret("AWS_ACCESS_KEY_ID", s3.secret_name),
            _secret("AWS_SECRET_ACCESS_KEY", s3.secret_name),
            _secret("AWS_SESSION_TOKEN", s3.secret_name, optional=True),
        ]
    if s3.ca_config_map:
        environment.append({"name": "AWS_CA_BUNDLE", "value": "/ca/ca.crt"})
    if spec.storage.hugging_face.secret_name:
        environment.append(_secret("HF_TOKEN", spec.storage.hugging_face.secret_name, key="token"))
    return environment


def _whole(quantity: str) -> int:
    """A Kubernetes quantity, rounded down."""
    return int(parse_quantity(quantity))  # type: ignore[no-untyped-call]


def _secret(variable: str, secret: str, *, key: str | None = None, optional: bool = False) -> Document:
    reference = {"name": secret, "key": key or variable} | ({"optional": True} if optional else {})
    return {"name": variable, "valueFrom": {"secretKeyRef": reference}}


def attempt_of(job: Document) -> Attempt:
    """What a Job is, by its labels and annotations.

    Raises:
        ValueError, KeyError: it was not made here.
    """
    metadata = job["metadata"]
    notes = metadata["annotations"]
    return Attempt(
        step=metadata["labels"][STAGE_LABEL],
        kind=metadata["labels"][TASK_LABEL],
        indices=_numbers(notes[INDICES]),
        attempts=_numbers(notes[ATTEMPTS]),
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)
