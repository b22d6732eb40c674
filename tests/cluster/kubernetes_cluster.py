"""The cluster as the tests see it: kubectl, service accounts, the audit log, and its daemons' switches."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Document = Mapping[str, Any]


class KubectlError(Exception):
    """kubectl ended with an error; the text is what it said."""


class Cluster:
    """A Kubernetes cluster.

    Attributes:
        kubeconfig: of an administrator.
        address: of the tests' own servers, as pods reach them.
        is_ours: whether it is the one that `lab` brought up; only then is there an audit log, and daemons to stop.
    """

    def __init__(self, kubeconfig: Path, address: str, is_ours: bool) -> None:
        self.kubeconfig, self.address, self.is_ours = kubeconfig, address, is_ours

    def kubectl(self, *arguments: str | Path, stdin: str | None = None) -> str:
        """kubectl's output; KubectlError with its words when it fails."""
        # A cache of its own: the usual one goes by address, and remembers the kinds of another cluster there.
        options = [f"--kubeconfig={self.kubeconfig}", f"--cache-dir={self.kubeconfig.parent / 'kubectl'}"]
        command = ["kubectl", *options, *(str(a) for a in arguments)]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True)
        if done.returncode:
            raise KubectlError(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    def apply(self, documents: str | Document | Sequence[Document], *options: str) -> str:
        """Apply YAML, one document or several; KubectlError with the server's words when it refuses."""
        if not isinstance(documents, str):
            items = [documents] if isinstance(documents, Mapping) else list(documents)
            documents = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        return self.kubectl("apply", "--filename=-", *options, stdin=documents)

    def get(self, *arguments: str) -> Any:
        """What `kubectl get ARGUMENTS` finds, as parsed JSON."""
        return json.loads(self.kubectl("get", *arguments, "--output=json"))

    def token(self, service_account: str, namespace: str, duration: str = "4h") -> str:
        """A fresh token of the service account."""
        return self.kubectl("create", "token", service_account, f"--namespace={namespace}", f"--duration={duration}")

    def kubeconfig_of(self, service_account: str, namespace: str, path: Path) -> Path:
        """Write a kubeconfig with which a process is that service account."""
        config = json.loads(self.kubectl("config", "view", "--raw", "--minify", "--flatten", "--output=json"))
        config["users"][0]["user"] = {"token": self.token(service_account, namespace).strip()}
        config["contexts"][0]["context"]["namespace"] = namespace
        path.write_text(json.dumps(config))
        path.chmod(0o600)
        return path

    def audit(self) -> Iterator[dict[str, Any]]:
        """Every request that service accounts made and every write by anybody, since the cluster is up, in the API
        server's own words (audit.k8s.io/v1 Event, level Metadata: `verb`, `user`, `objectRef`, `responseStatus`).
        EVOMERGE_TEST_AUDIT names another cluster's log that is to be read too."""
        self._require_ours("an audit log")
        from lab.places import AUDIT_LOG

        beside = os.environ.get("EVOMERGE_TEST_AUDIT")
        for log in (AUDIT_LOG, *([Path(beside)] if beside else [])):
            with log.open() as entries:
                for line in entries:
                    if line.endswith("\n"):  # else it is being written
                        yield json.loads(line)

    def stop_api(self) -> None:
        """Kill the API server; connections are then refused."""
        self.stop("kube-apiserver")

    def start_api(self) -> None:
        """Start the API server again; returns when it is ready."""
        self.start("kube-apiserver")
        from lab import node

        node.wait_for_api()

    def stop(self, daemon: str) -> None:
        """Kill one of lab.daemons.DAEMONS."""
        self._require_ours(f"a {daemon} that can be stopped")
        from lab import node

        node.stop(daemon)

    def start(self, daemon: str) -> None:
        """Start one of lab.daemons.DAEMONS again."""
        self._require_ours(f"a {daemon} that can be started")
        from lab import node

        node.start(daemon)

    def _require_ours(self, what: str) -> None:
        if not self.is_ours:
            pytest.skip(f"the existing cluster has not got {what}")


def own_cluster() -> Cluster:
    """The one that `lab` brought up, in whose sandbox we are."""
    from lab.places import KUBECONFIG, NODE_ADDRESS

    if not KUBECONFIG.exists():
        pytest.fail(
            "these tests need a cluster: run them by `make test-cluster` (as root on Linux), or name an existing one: "
            "EVOMERGE_TEST_CONTEXT=<kubectl context>. All other tests: make test-unit test-parity test-run",
            pytrace=False,
        )
    return Cluster(KUBECONFIG, NODE_ADDRESS, is_ours=True)


def existing_cluster(context: str, folder: Path) -> Cluster:
    """The cluster of a kubectl context; its pods reach us by the address of our way out."""
    import socket

    command = ["kubectl", "config", "view", "--raw", "--minify", "--flatten", f"--context={context}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"EVOMERGE_TEST_CONTEXT={context}: {done.stderr.strip()}", pytrace=False)
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(done.stdout)
    kubeconfig.chmod(0o600)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way_out:
        way_out.connect(("192.0.2.1", 9))  # sends nothing: the kernel only chooses the address
        return Cluster(kubeconfig, way_out.getsockname()[0], is_ours=False)


def find_cluster(folder: Path) -> Cluster:
    """The cluster that the tests are to use."""
    context = os.environ.get("EVOMERGE_TEST_CONTEXT")
    return existing_cluster(context, folder) if context else own_cluster()
