"""The images, built by buildah outside of the sandbox (builds need the network) and handed to containerd inside.

An image's tag is the digest of all that it is made from, so that an unchanged one is neither built nor handed over
again. What the cluster was given last is noted in LOADED, where the tests find it.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from lab import sandbox
from lab.containers import PAUSE_ARCHIVE
from lab.daemons import PAUSE_IMAGE
from lab.places import BIN, CACHE, LOADED, REPOSITORY, Places
from lab.shell import run

NAMES = ("operator", "light-worker", "worker")
_LIGHT = REPOSITORY / "tests/cluster/light"
_SUITE = "bookworm"
_STAGE_INPUTS = (REPOSITORY / "Dockerfile",)
"""The stage that lends uv, kept as an image so that the builds find its layers."""
_COMMON = ("Dockerfile", ".dockerignore", "pyproject.toml", "constraints.txt", "README.md", "operator", "worker")


def reference(name: str) -> str:
    """The image's name and tag, by its inputs as they are now. `name` is one of NAMES."""
    inputs = [REPOSITORY / path for path in _COMMON] + ([_LIGHT] if name == "light-worker" else [])
    return f"localhost/evomerge-{name}:{_digest(inputs)}"


def build(name: str) -> str:
    """Build the image where it is missing; its reference."""
    wanted = reference(name)
    with _locked("images.lock"):
        if not _is_built(wanted):
            print(f"building {wanted}", flush=True)
            _buildah("rm", "--all")  # what a killed build left
            stage = _build_target("build", f"localhost/evomerge-build:{_digest(_STAGE_INPUTS)}")
            if name == "light-worker":
                operator = _build_target("operator", reference("operator"))
                _bud(_LIGHT / "Dockerfile", wanted, {"BUILD": stage, "OPERATOR": operator})
                _remove_older(wanted)
            else:
                _build_target(name, wanted)
            _buildah("rmi", "--prune")
    return wanted


def load(name: str, places: Places) -> str:
    """Build the image and hand it to the cluster's containerd, each where it is missing; its reference."""
    wanted = reference(name)
    if wanted not in _in_cluster(places, "print(*containers.images())").split():
        _hand_over(name, build(name), places)
    with _locked("loaded.lock"):
        record = places.folder / LOADED.name
        loaded = json.loads(record.read_text()) if record.exists() else {}
        record.write_text(json.dumps({**loaded, name: wanted}))
    return wanted


def _hand_over(name: str, wanted: str, places: Places) -> None:
    with _locked(f"{name}.lock"):
        print(f"handing {wanted} to the cluster", flush=True)
        folder = CACHE / "tmp" / f"hand-over-{name}"
        shutil.rmtree(folder, ignore_errors=True)  # a killed one may have left gigabytes
        folder.mkdir()
        try:
            archive = folder / "image.tar"  # in docker's format, which is not compressed
            _buildah("push", "--quiet", wanted, f"docker-archive:{archive}:{wanted}", temporary=folder)
            _in_cluster(places, f"containers.import_archive(Path({str(archive)!r}), {wanted!r})")
        finally:
            shutil.rmtree(folder)


def make_pause() -> None:
    """The archive of the pause image, from the binary built before."""
    if PAUSE_ARCHIVE.exists() and PAUSE_ARCHIVE.stat().st_mtime >= (BIN / "pause").stat().st_mtime:
        return
    with _locked("images.lock"):
        context = CACHE / "tmp/pause"
        context.mkdir(parents=True, exist_ok=True)
        shutil.copy(BIN / "pause", context)
        (context / "Dockerfile").write_text('FROM scratch\nCOPY pause /pause\nUSER 65535\nENTRYPOINT ["/pause"]\n')
        _bud(context / "Dockerfile", PAUSE_IMAGE, {}, context=context)
        PAUSE_ARCHIVE.unlink(missing_ok=True)
        _buildah("push", "--quiet", PAUSE_IMAGE, f"oci-archive:{PAUSE_ARCHIVE}:{PAUSE_IMAGE}")


def _base() -> str:
    """A plain Debian with Python, in the place of the public image that the Dockerfile names: made by debootstrap, for
    test machines reach package registries but no image registry."""
    name = f"localhost/evomerge-base:{_SUITE}"
    if _is_built(name):
        return name
    print("making a base image by debootstrap", flush=True)
    context = CACHE / "tmp/base"
    shutil.rmtree(context, ignore_errors=True)
    root = context / "root"
    root.mkdir(parents=True)
    run(["debootstrap", "--variant=minbase", "--include=python3", _SUITE, root])
    for unwanted in ("var/lib/apt/lists", "var/cache/apt", "usr/share/doc", "usr/share/locale", "usr/share/man", "dev"):
        shutil.rmtree(root / unwanted, ignore_errors=True)
        (root / unwanted).mkdir()
    run(["tar", "--create", "--file", context / "root.tar", "--directory", root, "."])
    (context / "Dockerfile").write_text("FROM scratch\nADD root.tar /\n")
    _bud(context / "Dockerfile", name, {}, context=context)
    shutil.rmtree(context)
    return name


def _build_target(stage: str, name: str) -> str:
    """One stage of the Dockerfile as an image, where it is missing; its name. The layers that are alike are shared."""
    if not _is_built(name):
        _bud(REPOSITORY / "Dockerfile", name, {"BASE": _base()}, target=stage)
        _remove_older(name)
    return name


def _bud(dockerfile: Path, name: str, arguments: dict[str, str], target: str = "", context: Path = REPOSITORY) -> None:
    """Build from a Dockerfile. Where the machine names certificates of its own, they are lent to the build, which
    reaches the package registries through whatever the machine reaches them through."""
    arguments = dict(arguments)
    if backend := os.environ.get("UV_TORCH_BACKEND"):
        arguments["UV_TORCH_BACKEND"] = backend
    certificates = os.environ.get("SSL_CERT_FILE")
    if certificates:
        arguments["SSL_CERT_FILE"] = "/run/certificates.crt"
    _buildah(
        *("bud", "--quiet", "--layers", "--isolation", "chroot", "--network", "host", "--format", "oci"),
        *(("--volume", f"{Path(certificates).resolve()}:/run/certificates.crt:ro") if certificates else ()),
        *(f"--build-arg={key}={value}" for key, value in arguments.items()),
        *((f"--target={target}",) if target else ()),
        *("--tag", name, "--file", str(dockerfile), str(context)),
    )


def _is_built(name: str) -> bool:
    return subprocess.run(_command("inspect", "--type=image", name), capture_output=True).returncode == 0


def _remove_older(name: str) -> None:
    stem = name.rpartition(":")[0]
    for image in _buildah("images", "--format={{.Name}}:{{.Tag}}").split():
        if image.rpartition(":")[0] == stem and image != name:
            subprocess.run(_command("rmi", image), capture_output=True)  # an image in use stays until the next time


def _buildah(*arguments: str, temporary: Path = CACHE / "tmp") -> str:
    return run(_command(*arguments), env={**os.environ, "TMPDIR": str(temporary)})


def _command(*arguments: str) -> list[str]:
    stores = ("--root", str(CACHE / "storage"), "--runroot", str(CACHE / "tmp/run"), "--storage-driver", "overlay")
    return ["buildah", *stores, *arguments]


def _in_cluster(places: Places, code: str) -> str:
    program = f"from pathlib import Path; from lab import containers; {code}"
    return run(sandbox.command(places, ["python3", "-c", program], cwd=REPOSITORY / "tests/cluster"))


class _locked:  # noqa: N801
    """One at a time, over processes."""

    def __init__(self, name: str) -> None:
        (CACHE / "tmp").mkdir(parents=True, exist_ok=True)
        self._file = (CACHE / "tmp" / name).open("w")

    def __enter__(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _digest(paths: Iterable[Path]) -> str:
    contents = hashlib.sha256()
    for path in paths:
        files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file() and _counts(f))
        for file in files:
            contents.update(f"{file.relative_to(REPOSITORY)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return contents.hexdigest()[:16]


def _counts(file: Path) -> bool:
    return "__pycache__" not in file.parts and ".egg-info" not in str(file) and file.suffix != ".so"
