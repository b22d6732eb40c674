"""Searches whose planning is heavy, beside a calm one: the Lease stays where it is, and the calm one goes on."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from audit_log import writes_about
from image_references import Images
from kubernetes_cluster import Cluster
from releases import RELEASE, Release
from s3 import S3Server
from searches import Search, light_manifest

_LONGEST_STAND = timedelta(seconds=10)


@pytest.fixture
def light_search_of_release(
    cluster: Cluster, images: Images, installed: Release, undisturbed: Search, s3: S3Server
) -> Iterator[Callable[..., Search]]:
    """Applies an EvoMerge for the light worker, served by the two operators of the chart; it goes with the test."""
    applied: list[Search] = []

    def apply(name: str, **settings: Any) -> Search:
        manifest = light_manifest(name, undisturbed.namespace, images.light_worker, s3, **settings)
        applied.append(Search.apply(cluster, manifest))
        return applied[-1]

    yield apply
    for search in applied:
        search.delete()


_SPACE = {
    "method": "dare_ties",
    "groups": {"everyLayer": True},
    "parameters": {"weight": {"min": "0", "max": "1"}, "density": {"min": "0.1", "max": "1"}},
}
_PATTERNS = [{"name": f"p{i}", "regex": "(?i)" + rf"[{chr(0xC0 + i)}-\uffff]" * 49} for i in range(64)]
"""Valid, and half a minute's work to compile: each is another one."""


def _stage(space: dict[str, Any], **search: Any) -> dict[str, Any]:
    return {"name": "ps", "parameterSpace": space, "search": {"candidates": 4000, **search}}


HEAVY = {
    "covariance": _stage(_SPACE, algorithm="CMA-ES", lag=64, population=64),
    "population": _stage(_SPACE, algorithm="GA", lag=1024, population=4096),
    "patterns": _stage(_SPACE | {"groups": {"patterns": _PATTERNS}}),
}


def test_heavy_searches_keep_the_lease_where_it_is_and_a_calm_one_never_stands_for_ten_seconds(
    cluster: Cluster, light_search_of_release: Callable[..., Search]
) -> None:
    """With two replicas: a leader that plans on the loop that renews the Lease would lose it to the other."""
    calm = light_search_of_release("calm", candidates=8, parallelism=1)
    calm.wait(lambda status: status.get("done", 0) >= 1)
    lease = _lease(cluster)
    models = [{"name": f"m{i}", "uri": f"s3://models/m{i}"} for i in range(32)]
    heavy = {
        name: light_search_of_release(
            name, models=models, base={"uri": "s3://models/base"}, stages=[stage], parallelism=1
        )
        for name, stage in HEAVY.items()
    }
    heavy["patterns"].wait(lambda status: status.get("reason") == "PlanningTooLong")
    calm.succeeds(300)
    assert _lease(cluster) == lease
    writes = writes_about(calm)
    reactions = [later - earlier for (earlier, _), (later, by_operator) in pairwise(writes) if by_operator]
    assert len(reactions) > 20
    assert max(reactions) < _LONGEST_STAND
    for name in ("covariance", "population"):
        heavy[name].wait(lambda status: status.get("phase") == "Searching")


def _lease(cluster: Cluster) -> tuple[str, int]:
    """Who holds the Lease, and how often it has changed hands."""
    spec = cluster.get("lease/evomerge", f"--namespace={RELEASE}")["spec"]
    return spec["holderIdentity"], spec.get("leaseTransitions", 0)
