"""The chart, installed."""

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from image_references import Images
from kubernetes_cluster import Cluster

CHART = Path(__file__).parents[2] / "charts/evomerge"
RELEASE = "evomerge"
"""Name and namespace of the release that brings the CRDs."""


@dataclass(frozen=True)
class Release:
    """A release of the chart, named `evomerge`."""

    helm: Callable[..., str]
    images: Images
    namespace: str
    values: Mapping[str, Any]

    @classmethod
    def install(
        cls, cluster: Cluster, helm: Callable[..., str], images: Images, namespace: str, values: Mapping[str, Any]
    ) -> "Release":
        """Install the chart in the namespace, which is made where it is missing."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}})
        release = cls(helm, images, namespace, {"image": image_values(images)} | values)
        release.upgrade({})
        return release

    def upgrade(self, values: Mapping[str, Any]) -> None:
        """`helm upgrade --install` with further values; returns when its operators are ready."""
        options = [f"--namespace={self.namespace}", "--wait", "--timeout=3m"]
        self.helm("upgrade", "--install", RELEASE, CHART, *options, values={**self.values, **values})

    def uninstall(self) -> None:
        """`helm uninstall`; returns when all of it is gone."""
        self.helm("uninstall", RELEASE, f"--namespace={self.namespace}", "--wait", "--timeout=3m")


def helm_runner(cluster: Cluster) -> Callable[..., str]:
    """Runs helm on the cluster; its output. The test fails with its words when it fails."""

    def run(*arguments: str | Path, values: Mapping[str, Any] | None = None) -> str:
        command = ["helm", f"--kubeconfig={cluster.kubeconfig}", *(str(a) for a in arguments)]
        stdin = None
        if values is not None:
            command, stdin = [*command, "--values=-"], json.dumps(values)
        done = subprocess.run(command, input=stdin, capture_output=True, text=True)
        if done.returncode:
            pytest.fail(f"helm {' '.join(command[2:])}: {done.stderr.strip()}")
        return done.stdout

    return run


def image_values(images: Images) -> dict[str, Any]:
    """The chart's `image` for the images that the cluster has."""
    return {"operator": _parts(images.operator), "worker": _parts(images.wanted_worker)}


def _parts(reference: str) -> dict[str, str]:
    repository, _, tag = reference.rpartition(":")
    return {"repository": repository, "tag": tag}
