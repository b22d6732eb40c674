"""containerd's images and containers, by its own command. All of this runs inside the sandbox."""

import subprocess
from pathlib import Path

from lab.places import BIN, CONTAINERD
from lab.shell import run, wait_for

PAUSE_ARCHIVE = BIN / "pause.tar"
_CTR = (str(BIN / "ctr"), f"--address={CONTAINERD}", "--namespace=k8s.io")


def wait_until_up() -> None:
    """Until containerd answers."""

    def answers() -> bool:
        return subprocess.run([*_CTR, "version"], capture_output=True).returncode == 0

    wait_for("containerd answers", answers, 30)


def forget_all() -> bool:
    """Remove every container's record; whether there was one. None runs: their processes went with their sandbox."""
    names = run([*_CTR, "containers", "list", "--quiet"]).split()
    if names:
        run([*_CTR, "containers", "remove", *names])
    return bool(names)


def images() -> dict[str, str]:
    """All images that the node has: the digest of each reference. (The second reference of each, by its configuration,
    is the kubelet's.)"""
    rows = run([*_CTR, "images", "list"]).splitlines()[1:]
    return {row.split()[0]: row.split()[2] for row in rows}


def import_pause() -> None:
    """The image of every pod's first container."""
    run([*_CTR, "images", "import", PAUSE_ARCHIVE])


def import_archive(archive: Path, reference: str) -> None:
    """Take an image from an OCI archive, and remove older ones of the same name. Its layers are kept unpacked only."""
    run([*_CTR, "images", "import", "--local", "--discard-unpacked-layers", archive])
    name = reference.rpartition(":")[0]
    known = images()
    older = {image for image in known if image.rpartition(":")[0] == name and image != reference}
    wanted = {digest for image, digest in known.items() if not image.startswith("sha256:") and image not in older}
    unwanted = older | {image for image, digest in known.items() if digest not in wanted}
    if unwanted:
        run([*_CTR, "images", "remove", "--sync", *sorted(unwanted)])
