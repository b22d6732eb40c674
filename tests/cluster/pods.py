"""Pods for tests: restricted ones, run to their end."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from kubernetes_cluster import Cluster

NONROOT = 65532


def restricted_pod(
    name: str,
    namespace: str,
    image: str,
    command: Sequence[str],
    env: Sequence[Mapping[str, Any]] = (),
    service_account: str | None = None,
) -> dict[str, Any]:
    """A pod that Pod Security's level `restricted` lets in, with a read-only root and an empty /tmp. With a service
    account it has that one's token, else none."""
    container = {
        "name": "main",
        "image": image,
        "command": list(command),
        "env": list(env),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": service_account is not None,
        "serviceAccountName": service_account or "default",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": NONROOT,
            "runAsGroup": NONROOT,
            "fsGroup": NONROOT,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    metadata = {"name": name, "namespace": namespace, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def run_to_end(cluster: Cluster, pod: Mapping[str, Any], seconds: int = 60) -> str:
    """Create the pod, wait until it has succeeded, and return its log; the test fails with the log when it does not."""
    name, namespace = pod["metadata"]["name"], f"--namespace={pod['metadata']['namespace']}"
    cluster.apply(pod)
    end = time.monotonic() + seconds
    while (phase := cluster.get(f"pod/{name}", namespace)["status"]["phase"]) not in ("Succeeded", "Failed"):
        if time.monotonic() > end:
            pytest.fail(
                f"pod {name} is {phase} after {seconds} s: {cluster.kubectl('describe', 'pod', name, namespace)}"
            )
        time.sleep(0.2)
    log = cluster.kubectl("logs", f"pod/{name}", namespace)
    if phase != "Succeeded":
        pytest.fail(f"pod {name} {phase}: {log}")
    return log
