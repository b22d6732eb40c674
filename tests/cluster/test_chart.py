"""The chart: each of its switches, its schema, its rights, and what an upgrade and an uninstall do and leave."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import yaml

from api_server import ApiServer, api_server
from bad_manifests import good_evomerge
from chart_switches import ABSENT, BAD_VALUES, switches
from evomerge_operator.kube.templates import merged
from kubernetes_cluster import Cluster
from releases import CHART, RELEASE, Release
from rendering import OLDEST, of_kind, rendered

OTHER = "other"
"""The name of releases that are rendered or tried only."""
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
ALERTS = yaml.safe_load((CHART / "files/alerts.yaml").read_text())
MONITORING = "monitoring.coreos.com"
SWITCHES = switches("default")


@pytest.fixture(scope="module")
def api(cluster: Cluster, installed: Release) -> Iterator[ApiServer]:
    with api_server(cluster) as api:
        yield api


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_changes_what_it_says_and_the_api_server_accepts_it(
    cluster: Cluster, helm: Callable[..., str], installed: Release, module_namespace: str, name: str
) -> None:
    switch = switches(module_namespace)[name]
    documents = rendered(helm, switch.values, namespace=module_namespace, name=OTHER)
    for place, wanted in switch.shows.items():
        assert (place, _at(documents, place)) == (place, wanted)
    untried = () if name == "defaults" else ("CustomResourceDefinition",)  # big, and the same with every switch
    known = [d for d in documents if not d["apiVersion"].startswith(MONITORING) and d["kind"] not in untried]
    tried = [*known, _pod_of(documents)]
    for pod in of_kind(tried, "Pod"):
        pod["spec"]["serviceAccountName"] = "default"  # their own is not there
    text = "\n---\n".join(map(json.dumps, tried))
    accepted = cluster.apply(text, "--dry-run=server", f"--namespace={module_namespace}").splitlines()
    assert len(accepted) == len(tried)


def test_every_value_is_changed_by_a_switch() -> None:
    changed = {leaf for switch in SWITCHES.values() for leaf in _leaves(switch.values)}
    reached = {place for leaf in changed for place in accumulate(leaf.split("."), "{}.{}".format)}
    assert set(_leaves(VALUES)) - reached == set()


def test_lint_finds_nothing_with_the_defaults_and_with_all_switches_together(helm: Callable[..., str]) -> None:
    together: dict[str, Any] = {}
    for switch in SWITCHES.values():
        together = merged(together, switch.values)
    for values in ({}, together):
        assert "0 chart(s) failed" in helm("lint", "--strict", f"--kube-version={OLDEST}", CHART, values=values)


@pytest.mark.parametrize("name", BAD_VALUES)
def test_bad_values_are_refused_with_words(helm: Callable[..., str], installed: Release, name: str) -> None:
    values, words = BAD_VALUES[name]
    with pytest.raises(pytest.fail.Exception, match=re.escape(words)):
        rendered(helm, values)


def test_an_older_kubernetes_is_refused(helm: Callable[..., str]) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"chart requires kubeVersion: >=1\.30\.0-0"):
        helm("template", RELEASE, CHART, "--kube-version=1.29.9")


def test_no_right_is_given_by_a_star_and_none_to_secrets(helm: Callable[..., str]) -> None:
    for namespaces in ([], ["default"]):
        documents = rendered(helm, {"namespaces": namespaces})
        roles = [*of_kind(documents, "Role"), *of_kind(documents, "ClusterRole")]
        rules = [rule for role in roles for rule in role["rules"]]
        assert rules
        for rule in rules:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert "secrets" not in rule["resources"]


def test_two_releases_of_one_name_share_no_cluster_wide_object(helm: Callable[..., str]) -> None:
    names = [
        {
            (document["kind"], document["metadata"]["name"])
            for document in rendered(helm, {"crds": {"install": False}}, namespace=namespace)
            if document["kind"].startswith("Cluster")
        }
        for namespace in ("one", "two")
    ]
    assert names[0]
    assert names[0] & names[1] == set()


def test_long_release_names_leave_room_for_suffixes(helm: Callable[..., str]) -> None:
    values = {"metrics": {"dashboard": {"enabled": True}, "podMonitor": {"enabled": True}}}
    documents = rendered(helm, values, name="a" * 53, namespace="b" * 63)
    assert [d for d in documents if len(d["metadata"]["name"]) > (253 if "Role" in d["kind"] else 63)] == []


def test_the_rules_for_prometheus_are_the_file_and_well_formed(helm: Callable[..., str], tmp_path: Path) -> None:
    [made] = of_kind(rendered(helm, {"metrics": {"prometheusRule": {"enabled": True}}}), "PrometheusRule")
    assert made["spec"] == ALERTS
    done = subprocess.run(["promtool", "check", "rules", CHART / "files/alerts.yaml"], capture_output=True, text=True)
    assert (done.returncode, "9 rules found" in done.stdout) == (0, True), done.stderr + done.stdout


def test_the_dashboard_is_the_file(helm: Callable[..., str]) -> None:
    [made] = of_kind(rendered(helm, {"metrics": {"dashboard": {"enabled": True}}}), "ConfigMap")
    assert made["data"] == {"evomerge.json": (CHART / "files/dashboard.json").read_text()}
    panels = json.loads(made["data"]["evomerge.json"])["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_helm_test_passes(helm: Callable[..., str], installed: Release) -> None:
    said = helm("test", RELEASE, f"--namespace={RELEASE}", "--logs", "--timeout=2m")
    assert "Phase:          Succeeded" in said
    assert "an operator is ready, and the API server serves EvoMerge's kinds" in said


def test_the_notes_say_what_to_do_next_where_it_works(
    cluster: Cluster, helm: Callable[..., str], installed: Release, module_namespace: str
) -> None:
    notes = helm("get", "notes", RELEASE, f"--namespace={RELEASE}")
    assert f"EvoMerge {version('evomerge')} serves the namespaces {RELEASE}.\n" in notes
    assert f"kubectl -n {RELEASE} apply -f evomerge.yaml" in notes
    assert f"helm -n {RELEASE} test {RELEASE}" in notes
    options = [f"--namespace={module_namespace}", "--dry-run=server", "--set=crds.install=false"]
    everywhere = helm("install", OTHER, CHART, *options, "--set=networkPolicy.enabled=true")
    assert "serves all namespaces.\n" in everywhere
    assert "kubectl -n default apply -f evomerge.yaml" in everywhere
    assert "The workers have no NetworkPolicy" in everywhere


@pytest.mark.parametrize(
    ("role", "evomerges", "candidates"),
    [
        ("view", {"get", "list", "watch"}, {"get", "list", "watch"}),
        *(
            (
                role,
                {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"},
                {"get", "list", "watch"},
            )
            for role in ("edit", "admin")
        ),
    ],
)
def test_the_usual_roles_have_the_rights_on_our_kinds(
    cluster: Cluster, api: ApiServer, module_namespace: str, role: str, evomerges: set[str], candidates: set[str]
) -> None:
    user = f"{role}er"
    options = [f"--namespace={module_namespace}", f"--clusterrole={role}", f"--user={user}"]
    cluster.kubectl("create", "rolebinding", user, *options)
    assert _may(api, user, module_namespace, "evomerges") == evomerges
    assert _may(api, user, module_namespace, "mergecandidates") == candidates
    assert _may(api, user, module_namespace, "evomerges", "status") == set()
    assert _may(api, user, "default", "evomerges") == set()


def test_an_uninstall_keeps_the_searches_and_an_upgrade_renews_the_crds(
    cluster: Cluster, helm: Callable[..., str], installed: Release, module_namespace: str
) -> None:
    cluster.apply(good_evomerge(module_namespace, "kept"))
    # First its pods, then its rights: so that the last thing they do, giving back the Lease, is not refused.
    cluster.kubectl("scale", f"deployment/{RELEASE}", f"--namespace={RELEASE}", "--replicas=0")
    pods = "--selector=app.kubernetes.io/component=operator"
    cluster.kubectl("wait", "pods", pods, f"--namespace={RELEASE}", "--for=delete", "--timeout=60s")
    assert _left(cluster)
    installed.uninstall()
    try:
        assert _left(cluster) == []
        assert cluster.get("evomerge/kept", f"--namespace={module_namespace}")["spec"]["suspend"] is True
        for name in ("evomerges", "mergecandidates"):
            # As a chart of before left it: without the columns, and with other words.
            version = "/spec/versions/0"
            older = [
                {"op": "remove", "path": f"{version}/additionalPrinterColumns"},
                {"op": "replace", "path": f"{version}/schema/openAPIV3Schema/description", "value": "older"},
            ]
            cluster.kubectl("patch", "crd", f"{name}.evomerge.dev", "--type=json", f"--patch={json.dumps(older)}")
    finally:
        installed.upgrade({})
    for path in sorted((CHART / "files/crds").glob("*.yaml")):
        wanted = yaml.safe_load(path.read_text())
        found = cluster.get(f"crd/{wanted['metadata']['name']}")
        assert found["spec"]["names"] == wanted["spec"]["names"]
        for field in ("additionalPrinterColumns", "schema", "subresources"):
            assert found["spec"]["versions"][0][field] == wanted["spec"]["versions"][0][field]
    assert cluster.get("evomerge/kept", f"--namespace={module_namespace}")["spec"]["suspend"] is True


def _at(documents: list[dict[str, Any]], place: str) -> Any:
    """What is at `Kind/suffix:path`; ABSENT where there is nothing."""
    object_, _, path = place.partition(":")
    kind, _, suffix = object_.partition("/")
    found = [d for d in of_kind(documents, kind) if d["metadata"]["name"].endswith(f"{OTHER}-evomerge{suffix}")]
    if kind == "CustomResourceDefinition":
        found = of_kind(documents, kind)
    value: Any = found[0] if found else ABSENT
    for part in path.split(".") if path else []:
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, TypeError):
            return ABSENT
    return value


def _pod_of(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """A pod as the Deployment would make it: of a Deployment itself, Pod Security only warns."""
    [deployment] = of_kind(documents, "Deployment")
    template = deployment["spec"]["template"]
    metadata = {**template["metadata"], "name": "tried", "namespace": deployment["metadata"]["namespace"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def _left(cluster: Cluster) -> list[str]:
    """What is there of the release besides the CRDs."""
    in_namespace = "deployments,services,serviceaccounts,roles,rolebindings,poddisruptionbudgets"
    ours = "--selector=app.kubernetes.io/instance=evomerge,app.kubernetes.io/managed-by=Helm"
    left = cluster.kubectl("get", in_namespace, f"--namespace={RELEASE}", ours, "--output=name").split()
    everywhere = cluster.kubectl("get", "clusterroles,clusterrolebindings", ours, "--output=name").split()
    return left + [name for name in everywhere if f"/{RELEASE}-{RELEASE}" in name]


def _leaves(values: Any, place: str = "") -> Iterator[str]:
    """Every place of the values that holds no further mapping."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from _leaves(value, f"{place}.{key}".removeprefix("."))
    else:
        yield place


def _may(api: ApiServer, user: str, namespace: str, resource: str, subresource: str = "") -> set[str]:
    """The verbs that a user may use."""
    verbs = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
    about = {"namespace": namespace, "group": "evomerge.dev", "resource": resource, "subresource": subresource}
    allowed = set()
    for verb in verbs:
        spec = {"user": user, "resourceAttributes": {**about, "verb": verb}}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        answer = api.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        if answer.body["status"]["allowed"]:
            allowed.add(verb)
    return allowed
