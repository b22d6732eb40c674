"""The API server by plain HTTP, through `kubectl proxy`: a hundred questions in the time of ten kubectl calls."""

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from kubernetes_cluster import Cluster

GROUP = "/apis/evomerge.dev/v1alpha1"
MERGE_PATCH = "application/merge-patch+json"


@dataclass(frozen=True)
class Answer:
    """What the API server said."""

    code: int
    body: dict[str, Any]

    @property
    def words(self) -> str:
        """The message of a refusal."""
        return str(self.body.get("message", ""))

    @property
    def causes(self) -> list[tuple[str, str]]:
        """Field and words of each thing that a refusal names."""
        found = (self.body.get("details") or {}).get("causes") or []
        return [(cause.get("field", ""), cause["message"]) for cause in found]


@dataclass(frozen=True)
class ApiServer:
    """A running proxy, by its address; whoever asks is the cluster's administrator."""

    url: str

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        kind: str = "application/json",
        **query: str,
    ) -> Answer:
        """One request, and the answer whatever it is."""
        request = urllib.request.Request(  # noqa: S310 - our own http address
            f"{self.url}{path}?{urllib.parse.urlencode(query)}",
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Content-Type": kind},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                return Answer(answer.status, json.load(answer))
        except urllib.error.HTTPError as error:
            return Answer(error.code, json.load(error))

    def create(self, document: Mapping[str, Any], **query: str) -> Answer:
        """Create an EvoMerge or a MergeCandidate; unknown fields are refused, as kubectl has it."""
        place = f"{GROUP}/namespaces/{document['metadata']['namespace']}/{document['kind'].lower()}s"
        return self.request("POST", place, document, fieldValidation="Strict", **query)

    def try_create(self, document: Mapping[str, Any]) -> Answer:
        """The same, without any effect."""
        return self.create(document, dryRun="All")

    def try_replace(self, document: Mapping[str, Any]) -> Answer:
        """Ask whether an object of that name may become this one."""
        metadata = document["metadata"]
        place = f"{GROUP}/namespaces/{metadata['namespace']}/{document['kind'].lower()}s/{metadata['name']}"
        return self.request("PUT", place, document, fieldValidation="Strict", dryRun="All")

    def patch_status(self, document: Mapping[str, Any], status: Mapping[str, Any], **query: str) -> Answer:
        """Merge into an object's status."""
        metadata = document["metadata"]
        place = f"{GROUP}/namespaces/{metadata['namespace']}/{document['kind'].lower()}s/{metadata['name']}/status"
        return self.request("PATCH", place, {"status": status}, MERGE_PATCH, fieldValidation="Strict", **query)


@contextmanager
def api_server(cluster: Cluster) -> Iterator[ApiServer]:
    """The API server, while the context lasts."""
    command = ["kubectl", f"--kubeconfig={cluster.kubeconfig}", "proxy", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as proxy:
        try:
            said = proxy.stdout.readline() if proxy.stdout else ""  # "Starting to serve on 127.0.0.1:PORT"
            if "serve on" not in said:
                pytest.fail(f"kubectl proxy did not start: {said}")
            yield ApiServer("http://" + said.split()[-1])
        finally:
            proxy.kill()
