"""EvoMerges for the tests: small ones with the light worker, and what became of them."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from kubernetes_cluster import Cluster, Document, KubectlError
from s3 import S3Server

ENDED = ("Succeeded", "Failed")
BUCKET = "searches"
_VARYING = ("attempts", "seconds", "host")
"""What may differ between two runs of one search."""


def light_manifest(
    name: str,
    namespace: str,
    image: str,
    s3: S3Server,
    *,
    candidates: int = 4,
    parallelism: int = 3,
    faults: Mapping[str, str] | None = None,
    pulls: bool = False,
    **spec: Any,
) -> dict[str, Any]:
    """An EvoMerge of two made-up models for the light worker; `spec` replaces or adds fields of its spec.

    It wants a Secret `s3-credentials` in the namespace. `faults`: see light_faults; `pulls`: see light_pull.
    """
    worker = {"image": image, "resources": {"requests": {"cpu": "10m"}, "limits": {"memory": "256Mi"}}}
    env = [{"name": "LIGHT_FAULTS", "value": json.dumps(faults)}] if faults else []
    env += [{"name": "LIGHT_PULL", "value": "yes"}] if pulls else []
    if env:
        worker["podTemplate"] = {"spec": {"containers": [{"name": "worker", "env": env}]}}
    jsonl = {split: f"s3://data/{split}.jsonl" for split in ("search", "select", "test")}
    defaults: dict[str, Any] = {
        "models": [{"name": model, "uri": f"s3://models/{model}"} for model in ("one", "two")],
        "storage": {"s3": {"endpoint": s3.endpoint, "region": "us-east-1", "secretName": "s3-credentials"}},
        "evaluation": {"objectives": [{"name": "sums", "jsonl": jsonl, "metric": "exact_match"}]},
        "stages": [
            {
                "name": "ps",
                "parameterSpace": {"method": "linear", "parameters": {"weight": {"min": "0", "max": "1"}}},
                "search": {"candidates": candidates, "lag": 4, "seed": 7},
            }
        ],
        "parallelism": parallelism,
        "export": {"uri": f"s3://{BUCKET}/{namespace}/{name}"},
    }
    return {
        "apiVersion": "evomerge.dev/v1alpha1",
        "kind": "EvoMerge",
        "metadata": {"name": name, "namespace": namespace},
        "spec": defaults | spec | {"worker": worker | spec.get("worker", {})},
    }


@dataclass(frozen=True)
class Search:
    """An EvoMerge in the cluster."""

    cluster: Cluster
    namespace: str
    name: str

    @classmethod
    def apply(cls, cluster: Cluster, manifest: Document) -> "Search":
        """Apply the manifest; KubectlError when it is refused."""
        cluster.apply(manifest)
        return cls(cluster, manifest["metadata"]["namespace"], manifest["metadata"]["name"])

    def document(self) -> dict[str, Any]:
        """The resource as it is now."""
        found: dict[str, Any] = self.cluster.get(f"evomerge/{self.name}", f"--namespace={self.namespace}")
        return found

    def status(self) -> dict[str, Any]:
        """Its status; empty before the operator has seen it."""
        return dict(self.document().get("status") or {})

    def wait(self, what: Callable[[dict[str, Any]], Any], seconds: float = 120.0) -> dict[str, Any]:
        """Its status as soon as it is as wanted; the test fails when it is not in time, or ended before it was."""
        end = time.monotonic() + seconds
        while not what(status := self.status()):
            if time.monotonic() > end or status.get("phase") in ENDED:
                pytest.fail(f"{self.name} is not as wanted after {seconds:g} s:\n{self.describe()}")
            time.sleep(0.5)
        return status

    def succeeds(self, seconds: float = 180.0) -> dict[str, Any]:
        """Its status when it has succeeded; the test fails when it fails or takes longer."""
        return self.wait(lambda status: status.get("phase") == "Succeeded", seconds)

    def fails(self, seconds: float = 120.0) -> dict[str, Any]:
        """Its status when it has failed; the test fails when it succeeds or takes longer."""
        return self.wait(lambda status: status.get("phase") == "Failed", seconds)

    def patch(self, spec: Document) -> None:
        """Merge into its spec; KubectlError when the API server refuses."""
        patch = json.dumps({"spec": spec})
        self.cluster.kubectl(
            "patch", f"evomerge/{self.name}", f"--namespace={self.namespace}", "--type=merge", f"--patch={patch}"
        )

    def delete(self, *options: str) -> None:
        """Delete it; returns when it is gone."""
        self.cluster.kubectl("delete", f"evomerge/{self.name}", f"--namespace={self.namespace}", *options)

    def candidates(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Its MergeCandidates by stage and index."""
        return {(c["spec"]["stage"], c["spec"]["index"]): c for c in self.children("mergecandidates")}

    def children(self, kind: str) -> list[dict[str, Any]]:
        """Its objects of a kind."""
        selector = f"--selector=evomerge.dev/name={self.name}"
        return list(self.cluster.get(kind, f"--namespace={self.namespace}", selector)["items"])

    def describe(self) -> str:
        """All that a person would look at, for the message of a test that fails."""
        options = [f"--namespace={self.namespace}"]
        looks = [("describe", "evomerge", self.name), ("get", "emc"), ("get", "jobs,pods")]
        said = []
        for look in looks:
            try:
                said.append(self.cluster.kubectl(*look, *options))
            except KubectlError as error:
                said.append(str(error))
        return "\n".join(said)


def exported(s3: S3Server, search: Search, file: str) -> bytes:
    """A file of its export."""
    body: bytes = s3.client().get_object(Bucket=BUCKET, Key=f"{search.namespace}/{search.name}/{file}")["Body"].read()
    return body


def log_of(s3: S3Server, search: Search) -> list[dict[str, Any]]:
    """The log that it exported, without what may differ between two runs of one search."""
    return identical_part(exported(s3, search, "log.jsonl").decode())


def identical_part(log: str) -> list[dict[str, Any]]:
    """The entries of a log without times, hosts and attempts."""
    entries: list[dict[str, Any]] = [json.loads(line)["entry"] for line in log.splitlines()]
    for entry in entries[1:]:
        for varying in _VARYING:
            entry["candidate"].pop(varying, None)
    return entries
