"""Where everything lies, and the addresses of the cluster.

    CACHE/bin                    the binaries, built from ../kube
    CACHE/storage, CACHE/tmp     what buildah keeps
    CACHE/clusters/NAME/images   containerd's store: kept between runs, so that an image is imported once
    CACHE/clusters/NAME/node     everything else of one cluster: thrown away when it goes up and when it goes down

Inside the sandbox the cluster's folder is also `/run/cluster`: short (a socket's path holds 107 characters) and the
same for all.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
KUBE = REPOSITORY / "tests/cluster/kube"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evomerge-test-cluster"
BIN = CACHE / "bin"

NODE = "node1"
BRIDGE = "kbr0"
NODE_ADDRESS = "10.244.0.1"
"""The node, the pods' gateway, and where the tests' own servers listen."""
POD_NETWORK = "10.244.0.0/24"
SERVICE_NETWORK = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"
API = "https://127.0.0.1:6443"

INSIDE = Path("/run/cluster")
IMAGE_STORE = INSIDE / "images"
STATE = INSIDE / "node"
LOGS = STATE / "log"
KUBECONFIG = STATE / "admin.kubeconfig"
AUDIT_LOG = LOGS / "audit.jsonl"
LOADED = INSIDE / "loaded.json"
"""The references of the images that were handed over last, by name."""
CONTAINERD = Path("/run/containerd.sock")


@dataclass(frozen=True)
class Places:
    """The folders of the cluster `name`, as seen from outside its sandbox."""

    name: str = "default"

    @property
    def folder(self) -> Path:
        return CACHE / "clusters" / self.name

    @property
    def node(self) -> Path:
        return self.folder / "node"

    @property
    def sandbox(self) -> Path:
        """Names the sandbox's first process."""
        return self.folder / "sandbox.json"

    @property
    def sandbox_log(self) -> Path:
        return self.folder / "sandbox.log"

    @property
    def owner(self) -> Path:
        """Names the test run that brought the cluster up for itself; nobody's when a person did."""
        return self.folder / "owner.json"

    @property
    def audit_log(self) -> Path:
        """What the API server writes of its requests."""
        return self.node / "log/audit.jsonl"

    @property
    def last_audit_log(self) -> Path:
        """What it had written when the cluster was last used for tests."""
        return self.folder / "audit.jsonl"

    @property
    def cgroup(self) -> str:
        """The control group of all its pods: the machine's, so that another cache's cluster has another."""
        return f"evomerge-test-{self.name}-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]}"


class LabError(Exception):
    """What is wrong and what to do, in words for a person."""
