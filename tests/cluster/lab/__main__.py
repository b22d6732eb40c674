"""python tests/cluster/lab COMMAND: the test cluster, for people and for `make`.

    up                  bring the cluster up (it stays)         down    end it and clean up
    images [NAME …]     build images and hand them to it        clean   down, and remove the cache with all it holds
    exec COMMAND …      run a command inside (kubectl, pytest)  kwok    build KWOK's controller (for benches)
    test [ARGUMENT …]   all of it around `pytest ARGUMENT …`    check   whether `test` can, and which cluster it uses

EVOMERGE_TEST_CLUSTER names the cluster (`default`); several may be up at once, each in a sandbox of its own.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # so that `lab` is the package's name

from lab import binaries, cluster, images, node, sandbox, suite  # noqa: E402
from lab.places import CACHE, LabError, Places  # noqa: E402


def main(arguments: list[str]) -> int:
    """Run one command; its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    places = Places(os.environ.get("EVOMERGE_TEST_CLUSTER", "default"))
    name, rest = (arguments or ["help"])[0], arguments[1:]
    try:
        return _run(name, rest, places)
    except LabError as error:
        print(f"test cluster: {error}", file=sys.stderr)
        return 1


def _run(name: str, rest: list[str], places: Places) -> int:
    commands: dict[str, Callable[[], int | None]] = {
        "up": lambda: cluster.up(places),
        "down": lambda: cluster.down(places),
        "images": lambda: _images(rest, places),
        "exec": lambda: sandbox.call(places, rest),
        "check": cluster.check,
        "test": lambda: _test(rest, places),
        "apart": lambda: suite.apart(places, rest),  # the part of `test` that runs beside it
        "kwok": binaries.build_kwok,
        "clean": lambda: _clean(places),
        "node-up": lambda: node.up(places),  # the part of `up` that runs inside
    }
    if name not in commands:
        print(__doc__)
        return 2
    return commands[name]() or 0


def _test(arguments: list[str], places: Places) -> int:
    whole = arguments[:1] == [suite.SUITE] and "EVOMERGE_TEST_CONTEXT" not in os.environ
    if not whole:
        return cluster.test(places, arguments)
    cluster.check()
    return suite.run(places, arguments[1:])


def _images(names: list[str], places: Places) -> None:
    for name in names or images.NAMES:
        try:
            print(images.load(name, places))
        finally:
            (places.node / f"building-{name}").unlink(missing_ok=True)  # a test may wait for it


def _clean(places: Places) -> None:
    cluster.down(places)
    shutil.rmtree(CACHE, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
