"""What the operators of all the other tests asked of the API server: nothing was denied, and no right is idle.

They come last, and then see what was asked of the cluster beside too (lab/suite.py).
"""

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from kubernetes_cluster import Cluster
from releases import Release

Right = tuple[str, str, str]
"""API group, resource with its subresource, verb."""


@pytest.fixture(scope="module")
def requests(cluster: Cluster, installed: Release) -> list[dict[str, Any]]:
    """Every request of an operator, whatever release's."""
    pattern = re.compile("system:serviceaccount:[^:]+:evomerge")
    return [entry for entry in cluster.audit() if pattern.fullmatch(entry["user"]["username"])]


def test_no_request_of_an_operator_was_denied(requests: list[dict[str, Any]]) -> None:
    assert requests
    # An API server that has just started has read no roles yet and denies what it allows a moment later; a right that
    # is lacking is never allowed.
    asked: dict[bool, set[tuple[str, ...]]] = {True: set(), False: set()}
    for r in requests:
        asked[r["annotations"]["authorization.k8s.io/decision"] == "allow"].add((r["user"]["username"], *_right(r)))
    assert asked[True]
    assert asked[False] - asked[True] == set()


def test_every_right_that_the_chart_grants_is_used(
    cluster: Cluster, installed: Release, requests: list[dict[str, Any]]
) -> None:
    if "EVOMERGE_TEST_AUDIT" not in os.environ:
        pytest.skip("only the whole suite makes use of every right")
    roles = cluster.get("roles", f"--namespace={installed.namespace}")["items"]
    granted = {right for role in roles for rule in role["rules"] for right in _rights(rule)}
    assert granted
    assert granted - {_right(r) for r in requests if r["responseStatus"]["code"] < 400} == set()


def _rights(rule: dict[str, Any]) -> Iterator[Right]:
    for group in rule["apiGroups"]:
        for resource in rule["resources"]:
            for verb in rule["verbs"]:
                yield group, resource, verb


def _right(request: dict[str, Any]) -> Right:
    about = request.get("objectRef") or {}
    resource, subresource = about.get("resource", ""), about.get("subresource")
    return about.get("apiGroup", ""), f"{resource}/{subresource}" if subresource else resource, request["verb"]
