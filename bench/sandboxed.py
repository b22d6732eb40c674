"""Benches that need a Kubernetes run inside a cluster of their own, which is brought up for them and taken down."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/cluster"))

from lab import cluster, sandbox
from lab.places import KUBECONFIG, Places


def inside_the_sandbox(measure: Callable[[], None], ready: Callable[[Places], object]) -> None:
    """Run the bench inside, once `ready` has brought there what it needs; in there already: run."""
    if KUBECONFIG.exists():
        measure()
        return
    places = Places(os.environ.setdefault("EVOMERGE_TEST_CLUSTER", "bench"))  # for the processes that bring it up too
    was_up = cluster.is_up(places)
    cluster.up(places)
    try:
        ready(places)
        sys.exit(sandbox.call(places, [sys.executable, *sys.argv]))
    finally:
        if not was_up:
            cluster.down(places)
