"""The chart, installed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def image_values(images: Images) -> dict[str, Any]:
    """The chart's `image` for the images that the cluster has."""
    return {"operator": _parts(images.operator), "worker": _parts(images.wanted_worker)}


def _parts(reference: str) -> dict[str, str]:
    repository, _, tag = reference.rpartition(":")
    return {"repository": repository, "tag": tag}
