"""What the cluster's tests share. They run inside the cluster's sandbox: `make test-cluster`."""

import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from image_references import Images
from kubernetes_cluster import Cluster, find_cluster
from operator_process import OperatorProcess
from prometheus_server import Prometheus, running_prometheus
from releases import RELEASE, Release, helm_runner
from s3 import S3Process, S3Server, running_s3
from searches import BUCKET, Search, light_manifest


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The cluster: ours, in whose sandbox we are, or the one that EVOMERGE_TEST_CONTEXT names."""
    return find_cluster(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="session")
def images(cluster: Cluster) -> Images:
    """The images that the cluster was given."""
    from lab.existing import RECORD
    from lab.places import LOADED, STATE

    return Images(LOADED, STATE) if cluster.is_ours else Images(RECORD, RECORD.parent)


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A fresh namespace under Pod Security's level `restricted`, gone with the test."""
    yield from _fresh_namespace(cluster)


@pytest.fixture(scope="module")
def module_namespace(cluster: Cluster) -> Iterator[str]:
    """The same for a whole module."""
    yield from _fresh_namespace(cluster)


@pytest.fixture(scope="session")
def s3_process(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Process]:
    """SeaweedFS, reached by pods and tests at the same address; can be stopped and started."""
    with running_s3(tmp_path_factory.mktemp("s3"), cluster.address) as process:
        yield process


@pytest.fixture(scope="session")
def s3(s3_process: S3Process) -> S3Server:
    """The S3 server's address and keys."""
    return s3_process.server


@pytest.fixture
def s3_secret(cluster: Cluster, namespace: str, s3: S3Server) -> str:
    """The name of a Secret in the test's namespace with the S3 server's keys."""
    return _s3_secret(cluster, namespace, s3)


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[[Mapping[str, Any]], Prometheus]]:
    """Starts a Prometheus with the given configuration; it ends with the test. Rule files: relative to tmp_path."""
    with ExitStack() as running:

        def start(config: Mapping[str, Any]) -> Prometheus:
            return running.enter_context(running_prometheus(tmp_path, config))

        yield start


@pytest.fixture(scope="session")
def helm(cluster: Cluster) -> Callable[..., str]:
    """Runs helm on the cluster; its output. The test fails with its words when it fails."""
    return helm_runner(cluster)


@pytest.fixture(scope="session")
def installed(cluster: Cluster, helm: Callable[..., str], images: Images) -> Release:
    """The chart as a person installs it, with two operators that serve the namespace `evomerge`; it brings the CRDs."""
    tolerations = [{"key": "evomerge.dev/test", "operator": "Exists"}]
    values = {"replicas": 2, "namespaces": [RELEASE], "tolerations": tolerations}
    return Release.install(cluster, helm, images, RELEASE, values=values)


@pytest.fixture
def release(cluster: Cluster, helm: Callable[..., str], images: Images, installed: Release, namespace: str) -> Release:
    """The chart once more, for the test's namespace alone, without an operator: `operator_process` is to have its
    rights."""
    values = {"replicas": 0, "namespaces": [namespace], "crds": {"install": False}}
    return Release.install(cluster, helm, images, namespace, values=values)


@pytest.fixture
def light_search(
    cluster: Cluster, images: Images, namespace: str, s3: S3Server, s3_secret: str, installed: Release
) -> Callable[..., Search]:
    """Applies an EvoMerge for the light worker in the test's namespace: `light_search("name", candidates=4, …)`."""
    s3.make_bucket(BUCKET)

    def apply(name: str, **settings: Any) -> Search:
        return Search.apply(cluster, light_manifest(name, namespace, images.light_worker, s3, **settings))

    return apply


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster, images: Images, s3: S3Server, installed: Release) -> Search:
    """A search as `light_search` makes it, that nothing disturbs: what others are compared with. It may still run."""
    s3.make_bucket(BUCKET)
    _s3_secret(cluster, RELEASE, s3)
    return Search.apply(
        cluster, light_manifest(f"undisturbed-{uuid.uuid4().hex[:8]}", RELEASE, images.light_worker, s3)
    )


@pytest.fixture
def operator(release: Release, operator_process: Callable[..., OperatorProcess], namespace: str) -> OperatorProcess:
    """An operator that serves the test's namespace, with the rights that the chart gives it."""
    return operator_process("evomerge", namespace)


@pytest.fixture
def operator_process(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., OperatorProcess]]:
    """Starts `evomerge-operator` here as a service account of the cluster: `operator_process("evomerge", NAMESPACE,
    EVOMERGE_FAILPOINT=…)`. Every one is ended with the test."""
    started: list[OperatorProcess] = []

    def start(service_account: str, namespace: str, **environment: str) -> OperatorProcess:
        name = f"operator-{len(started)}"
        kubeconfig = cluster.kubeconfig_of(service_account, namespace, tmp_path / f"{name}.kubeconfig")
        place = {
            "KUBECONFIG": str(kubeconfig),
            "POD_NAMESPACE": namespace,
            "POD_NAME": name,
            "EVOMERGE_NAMESPACES": namespace,
            "EVOMERGE_LEASE": service_account,
            "EVOMERGE_WORKER_IMAGE": "localhost/none:0",
        }
        started.append(OperatorProcess({**place, **environment}, tmp_path / f"{name}.log").start())
        return started[-1]

    yield start
    for operator in started:
        operator.end()


def _s3_secret(cluster: Cluster, namespace: str, s3: S3Server) -> str:
    keys = {name: s3.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    metadata = {"name": "s3-credentials", "namespace": namespace}
    cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": keys})
    return "s3-credentials"


def _fresh_namespace(cluster: Cluster) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    cluster.kubectl("wait", "--for=create", "serviceaccount/default", f"--namespace={name}", "--timeout=60s")
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")
