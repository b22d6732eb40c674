"""candidate.cost: what a candidate on a cluster costs beyond its evaluation, and what sharing a pod saves.

The quickstart, its models in SeaweedFS, on the tests' own cluster with the real worker image and one worker pod at a
time: once with a pod for each candidate, once with 8 candidates in one. A candidate's whole time is the search's wall
time between two counts of finished candidates, divided by how many finished between them. The worker tells pull, load,
merge and evaluate itself; Kubernetes tells when a pod's container began (in whole seconds, so the mean over all pods is
taken); what is left is the worker's start (Python, PyTorch and transformers) and the operator's own steps.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path[1:1] = [str(HERE.parent / "tests/cluster"), str(HERE.parent / "tests")]

from figures import figure  # noqa: E402
from sandboxed import inside_the_sandbox  # noqa: E402

from evomerge_contract.candidate import PHASES  # noqa: E402
from image_references import Images  # noqa: E402
from kubernetes_cluster import Cluster, own_cluster  # noqa: E402
from lab import images as lab_images  # noqa: E402
from lab.places import LOADED, STATE, Places  # noqa: E402
from releases import Release, helm_runner  # noqa: E402
from s3 import S3Server, running_s3  # noqa: E402
from searches import Search  # noqa: E402

QUICKSTART = HERE.parent / "examples/quickstart"
NAMESPACE = "bench-candidate-cost"


@dataclass(frozen=True)
class Cost:
    """Mean seconds of a candidate, by what they went to; `start` is the worker's start and all that is not told."""

    seconds: dict[str, float]

    @property
    def beyond(self) -> float:
        """All but the evaluation."""
        return sum(self.seconds.values()) - self.seconds["evaluate"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=6, help="worker pods that are measured, of each kind")
    options = parser.parse_args()
    cluster = own_cluster()
    with tempfile.TemporaryDirectory() as folder, running_s3(Path(folder), cluster.address) as process:
        server = process.server
        for part in ("models", "data"):
            server.upload(QUICKSTART / part, "evomerge", f"quickstart/{part}/")
        images = Images(LOADED, STATE)
        release = {"replicas": 1, "namespaces": [NAMESPACE]}
        Release.install(cluster, helm_runner(cluster), images, NAMESPACE, values=release)
        give_keys(cluster, server)
        try:
            costs = {together: measure(cluster, server, together, options.pods) for together in (1, 8)}
        finally:
            cluster.kubectl("delete", "namespace", NAMESPACE)
    for together, cost in costs.items():
        figure(
            "candidate_cost",
            f"candidate.cost.{together}_per_pod",
            cost.beyond / cost.seconds["evaluate"],
            "ratio",
            reference="the candidate's evaluation (500 items, a model of 1.2 M parameters)",
            goal="",
            seconds={name: round(value, 3) for name, value in cost.seconds.items()},
        )


def give_keys(cluster: Cluster, server: S3Server) -> None:
    """The S3 server's keys, as a Secret."""
    keys = {name: server.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    metadata = {"name": "s3-credentials", "namespace": NAMESPACE}
    cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": keys})


def measure(cluster: Cluster, server: S3Server, together: int, pods: int) -> Cost:
    """Run the search with so many candidates in a pod."""
    manifest = yaml.safe_load((QUICKSTART / "cluster.yaml").read_text())
    manifest["metadata"] |= {"name": f"per-pod-{together}", "namespace": NAMESPACE}
    spec = manifest["spec"]
    spec["storage"]["s3"]["endpoint"] = server.endpoint
    spec["stages"][0]["search"] |= {"candidates": (pods + 1) * together}
    spec["parallelism"] = 1
    spec["worker"] |= {"candidatesPerPod": together, "resources": {}}
    search = Search.apply(cluster, manifest)
    seconds, waits = follow(search, together, (pods + 1) * together)
    candidates = [c["status"]["seconds"] for (stage, _), c in search.candidates().items() if stage != "baselines"]
    told = {phase: statistics.fmean(c.get(phase, 0.0) for c in candidates) for phase in PHASES}
    wait = statistics.fmean(waits) / together
    whole = seconds / (pods * together)
    search.delete()
    return Cost({"wait": wait, **told, "start": whole - wait - sum(told.values())})


def follow(search: Search, first: int, last: int) -> tuple[float, list[float]]:
    """The seconds from when `first` candidates had finished until `last` had, and each pod's wait for its container."""
    times: dict[int, float] = {}
    waits: dict[str, float] = {}
    while last not in times:
        found = search.candidates().items()
        done = sum(stage != "baselines" and "outcome" in c.get("status", {}) for (stage, _), c in found)
        times.setdefault(done - done % first, time.monotonic())
        for pod in search.children("pods"):
            began = container_began(pod)
            if pod["metadata"]["labels"].get("evomerge.dev/task") == "evaluate" and began is not None:
                waits[pod["metadata"]["uid"]] = (began - parsed(pod["metadata"]["creationTimestamp"])).total_seconds()
        time.sleep(0.1)
    return times[last] - times[first], list(waits.values())


def container_began(pod: dict[str, Any]) -> datetime | None:
    """When the worker's container began."""
    for status in pod["status"].get("containerStatuses") or ():
        state = status["state"]
        began = (state.get("running") or state.get("terminated") or {}).get("startedAt")
        if began:
            return parsed(began)
    return None


def parsed(text: str) -> datetime:
    """A Kubernetes time."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def load_images(places: Places) -> None:
    """Build what is missing, and hand it to the cluster."""
    for name in ("operator", "worker"):
        lab_images.load(name, places)


if __name__ == "__main__":
    inside_the_sandbox(main, load_images)
