"""An operator for all namespaces, by a ClusterRole."""

import json
from collections.abc import Callable

from image_references import Images
from kubernetes_cluster import Cluster
from releases import Release
from searches import Search


def test_an_operator_without_a_list_of_namespaces_serves_them_all(
    cluster: Cluster,
    helm: Callable[..., str],
    images: Images,
    installed: Release,
    light_search: Callable[..., Search],
) -> None:
    place = "evomerge-for-all"
    values = {"replicas": 1, "namespaces": [], "crds": {"install": False}}
    release = Release.install(cluster, helm, images, place, values=values)
    try:
        assert light_search("anywhere", candidates=2).succeeds()["candidates"] == "2/2"
        roles = [r["metadata"]["name"] for r in cluster.get("roles", f"--namespace={place}")["items"]]
        assert roles == ["evomerge-lease"]
    finally:
        # First its pods, then its rights: so that the last thing it does, giving back its Lease, is not refused.
        cluster.kubectl("scale", "deployment/evomerge", f"--namespace={place}", "--replicas=0")
        pods = "--selector=app.kubernetes.io/component=operator"
        cluster.kubectl("wait", "pods", pods, f"--namespace={place}", "--for=delete", "--timeout=60s")
        release.uninstall()
    lease = json.loads(cluster.kubectl("get", "lease/evomerge", f"--namespace={place}", "--output=json"))
    assert lease["spec"]["holderIdentity"] == ""
