"""The cluster as a whole: up, down, and around the tests."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab import binaries, existing, images, packages, processes, sandbox
from lab.places import REPOSITORY, LabError, Places
from lab.shell import run

_LAB = Path(__file__).parent
PYTEST = Path(sys.executable).parent / "pytest"


def up(places: Places) -> None:
    """Bring the cluster up unless it is; what a killed run left is cleaned first."""
    packages.require_machine()
    places.folder.mkdir(parents=True, exist_ok=True)
    with _alone(places):
        if is_up(places):
            return
        packages.install()
        binaries.build()
        images.make_pause()
        _clean(places)
        started = time.monotonic()
        places.node.mkdir()
        sandbox.start(places)
        try:
            run(sandbox.command(places, [sys.executable, _LAB, "node-up"]))
        except LabError:
            sandbox.end(places)  # its logs stay, to be read
            raise
        print(f"the cluster {places.name!r} is up after {time.monotonic() - started:.1f} s", flush=True)


def is_up(places: Places) -> bool:
    """Whether it is there to be used; not one that a killed test run left. LabError while another run has it."""
    if sandbox.process(places) is None or not places.owner.exists():
        return sandbox.process(places) is not None
    owner = processes.noted(places.owner)
    if owner not in (None, os.getpid()):
        raise LabError(f"another test run has the cluster {places.name!r}: wait for it, or EVOMERGE_TEST_CLUSTER=other")
    return owner is not None


def down(places: Places) -> None:
    """End the cluster and remove all that it made but the images."""
    if places.folder.exists():
        with _alone(places):
            _clean(places)


def check() -> None:
    """Say which cluster `test` will use; LabError when there can be none."""
    context = os.environ.get("EVOMERGE_TEST_CONTEXT")
    if context:
        print(f"the cluster's tests use the existing cluster of kubectl's context {context!r}", flush=True)
    else:
        packages.require_machine()
        print("the cluster's tests use a one-node cluster of their own, built here", flush=True)


def test(places: Places, arguments: list[str]) -> int:
    """Run pytest inside the cluster, which is ended afterwards unless it was up before; pytest's exit code.

    EVOMERGE_TEST_CONTEXT names another cluster: then none is built, and pytest runs on the machine as it is.
    """
    check()
    if context := os.environ.get("EVOMERGE_TEST_CONTEXT"):
        existing.load_all(context)
        return subprocess.call([str(PYTEST), *arguments])
    with lent(places), building(places, "worker"):
        return pytest(places, arguments)


@contextlib.contextmanager
def lent(places: Places) -> Iterator[None]:
    """The cluster with the small images, ended afterwards unless it was up before; its audit log stays."""
    was_up = is_up(places)
    try:
        up(places)
        if not was_up:
            processes.note(places.owner, os.getpid())
        for image in ("operator", "light-worker"):
            images.load(image, places)
        yield
    finally:
        if places.audit_log.exists():
            shutil.copy(places.audit_log, places.last_audit_log)
        if not was_up:
            down(places)


def pytest(places: Places, arguments: Sequence[str | Path]) -> int:
    """Run pytest inside; its exit code."""
    return sandbox.call(places, [PYTEST, *arguments], cwd=REPOSITORY)


@contextlib.contextmanager
def building(places: Places, name: str) -> Iterator[None]:
    """Build and load an image beside the tests: those that want it wait for it, the others need not."""
    (places.node / f"building-{name}").touch()  # until the builder has ended, well or not
    with (places.node / f"log/image-{name}.log").open("wb") as log:
        builder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", sys.executable, _LAB, "images", name],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(builder.pid, 15)
        builder.wait()


def _clean(places: Places) -> None:
    sandbox.end(places)
    places.owner.unlink(missing_ok=True)
    if places.node.exists():
        shutil.rmtree(places.node)


@contextlib.contextmanager
def _alone(places: Places) -> Iterator[None]:
    """Nobody else brings this cluster up or down meanwhile."""
    with (places.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
