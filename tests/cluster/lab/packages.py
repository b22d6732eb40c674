"""The Debian packages that the cluster needs, installed where they are missing."""

import os
import shutil
import sys

from lab.places import LabError
from lab.shell import run

PACKAGES = {
    "runc": "runc",
    "nft": "nftables",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "openssl": "openssl",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "prometheus": "prometheus",
}
"""A program of each package, and the package."""


def require_machine() -> None:
    """LabError unless this machine can hold the cluster: Linux, and we are root."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise LabError(
            "the cluster's tests need Linux and root (they start a Kubernetes node of their own), or an existing "
            "cluster: EVOMERGE_TEST_CONTEXT=<kubectl context> make test-cluster. "
            "All other tests: make test-unit test-parity test-run"
        )


def install() -> None:
    """Install what is missing, and say what."""
    missing = sorted(package for program, package in PACKAGES.items() if not shutil.which(program))
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise LabError(f"please install {' '.join(missing)}: this machine has no apt-get to do it with")
    print("installing the Debian packages", *missing, flush=True)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "--quiet"], env=env)
    run(["apt-get", "install", "--quiet", "--yes", "--no-install-recommends", *missing], env=env)
    if shutil.which("systemctl"):  # the package starts a server of its own, which nobody asked for
        run(["sh", "-c", "systemctl disable --now prometheus 2>/dev/null || true"])
