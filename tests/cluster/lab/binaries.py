"""The cluster's binaries, built by Go from ../kube into the cache; again when a source or a version changes."""

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

from lab.places import BIN, CACHE, KUBE, LabError
from lab.shell import run

COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
HELM = "helm.sh/helm/v3/cmd/helm@v3.22.0"
KWOK = "sigs.k8s.io/kwok/cmd/kwok@v0.8.0"
"""Only the benches need it."""


def build() -> None:
    """etcd, Kubernetes, containerd, the CNI plugins, pause and Helm in BIN. Takes minutes the first time."""
    BIN.mkdir(parents=True, exist_ok=True)
    with (CACHE / "binaries.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _stale("kube", _digest(*KUBE.rglob("*"))):
            print("building etcd, Kubernetes and containerd (minutes the first time)", flush=True)
            _build_kube()
            _built("kube", _digest(*KUBE.rglob("*")))
        _install("helm", HELM)


def build_kwok() -> None:
    """KWOK's controller, which plays nodes that do not exist, in BIN."""
    build()
    _install("kwok", KWOK)


def _build_kube() -> None:
    _go("install", "-trimpath", "-ldflags=-s -w", "tool")
    version = next(
        line.split()[1] for line in (KUBE / "go.mod").read_text().splitlines() if "k8s.io/kubernetes v" in line
    )
    major, minor, _ = version.removeprefix("v").split(".")
    stamp = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    flags = " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in stamp.items())
    _go("build", "-trimpath", f"-ldflags=-s -w {flags}", "-o", str(BIN / "kube"), ".")
    _go("build", "-trimpath", "-ldflags=-s -w", "-o", str(BIN / "pause"), "./pause")
    for component in COMPONENTS:
        (BIN / component).unlink(missing_ok=True)
        (BIN / component).symlink_to("kube")


def _install(name: str, module: str) -> None:
    if _stale(name, module):
        print(f"building {module}", flush=True)
        _go("install", "-trimpath", "-ldflags=-s -w", module)
        _built(name, module)


def _go(*arguments: str) -> None:
    if not shutil.which("go"):
        raise LabError("no `go` found: the test cluster is built from source, please install Go 1.26 or newer")
    env = {**os.environ, "CGO_ENABLED": "0", "GOBIN": str(BIN), "GOFLAGS": "-buildvcs=false"}
    run(["go", *arguments], env=env, cwd=KUBE)


def _stale(name: str, key: str) -> bool:
    mark = BIN / f".{name}"
    return not (mark.exists() and mark.read_text() == key)


def _built(name: str, key: str) -> None:
    (BIN / f".{name}").write_text(key)


def _digest(*files: Path) -> str:
    contents = hashlib.sha256()
    for file in sorted(f for f in files if f.is_file()):
        contents.update(f"{file.name}\0".encode() + file.read_bytes())
    return contents.hexdigest()
