"""The CRDs' rules, one by one, against the API server: what it refuses, in which words, and what it lets pass."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from api_server import Answer, ApiServer, api_server
from bad_manifests import (
    ADDED_BASE,
    CANDIDATE_CREATED,
    CANDIDATE_REPLACED,
    CANDIDATE_RETOLD,
    CANDIDATE_TOLD,
    CREATED,
    EVERY_CASE,
    GONE,
    GOOD,
    MAY_CHANGE,
    REPLACED,
    SUCCEEDED,
    Case,
    changed,
    good_candidate,
    good_evomerge,
)
from evomerge_operator.errors import InputError
from evomerge_operator.manifest import parse_manifest
from image_references import Images
from kubernetes_cluster import Cluster, KubectlError
from releases import Release
from s3 import S3Server
from schema_breaks import Break, breaks
from searches import BUCKET, Search, light_manifest

EXAMPLES = [
    path
    for path in sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))
    if "export" in yaml.safe_load(path.read_text())["spec"]
]
"""Those for a cluster."""
CLUSTER_ONLY = ("uri", "adapter", "endpoint", ".search", ".select", ".test")
"""The ends of places about which a single machine knows less, or other things."""


@pytest.fixture(scope="module")
def api(cluster: Cluster, installed: Release) -> Iterator[ApiServer]:
    with api_server(cluster) as api:
        yield api


@pytest.fixture(scope="module")
def there(api: ApiServer, module_namespace: str) -> str:
    """A namespace that no operator serves, with an EvoMerge `good`, one without a base, and two candidates: `open` and
    one that has succeeded."""
    evomerge = good_evomerge(module_namespace)
    _accepted(api.create(evomerge))
    _accepted(api.create(changed(evomerge, {"metadata.name": "baseless", "spec.base": GONE})))
    _accepted(api.create(good_candidate(module_namespace, "open")))
    finished = good_candidate(module_namespace, "finished")
    _accepted(api.create(finished))
    _accepted(api.patch_status(finished, SUCCEEDED))
    return module_namespace


@pytest.mark.parametrize("case", CREATED, ids=str)
def test_a_bad_evomerge_is_refused_by_the_one_rule_that_it_breaks(api: ApiServer, there: str, case: Case) -> None:
    _assert_refused(api.try_create(changed(good_evomerge(there, "new"), case.changes)), case)


@pytest.mark.parametrize("name", GOOD)
def test_a_good_evomerge_is_accepted(api: ApiServer, there: str, name: str) -> None:
    _accepted(api.try_create(changed(good_evomerge(there, "new"), GOOD[name])))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_an_example_for_a_cluster_is_accepted(cluster: Cluster, there: str, path: Path) -> None:
    said = cluster.kubectl("apply", f"--filename={path}", f"--namespace={there}", "--dry-run=server")
    assert said.startswith("evomerge.evomerge.dev/")


@pytest.mark.parametrize("case", [case for case in CREATED if not case.place.endswith(CLUSTER_ONLY)], ids=str)
def test_what_the_api_server_refuses_the_command_line_refuses_too(case: Case) -> None:
    with pytest.raises(InputError):
        parse_manifest(changed(good_evomerge("team"), case.changes), source="bad.yaml", folder=None)


@pytest.mark.parametrize("name", GOOD)
def test_what_the_api_server_accepts_the_operator_can_read(name: str) -> None:
    assert parse_manifest(changed(good_evomerge("team"), GOOD[name]), source="good.yaml", folder=None)


@pytest.mark.parametrize("case", REPLACED, ids=lambda case: f"{case.place} {[*case.changes]}")
def test_what_a_search_depends_on_cannot_be_edited(api: ApiServer, there: str, case: Case) -> None:
    _assert_refused(_try_edit(api, good_evomerge(there), case.changes), case)


def test_a_base_cannot_be_added(api: ApiServer, there: str) -> None:
    _assert_refused(_try_edit(api, good_evomerge(there, "baseless"), ADDED_BASE.changes), ADDED_BASE)


@pytest.mark.parametrize("what", MAY_CHANGE)
def test_what_a_search_does_not_depend_on_can_be_edited(api: ApiServer, there: str, what: str) -> None:
    _accepted(_try_edit(api, good_evomerge(there), MAY_CHANGE[what]))


@pytest.mark.parametrize("case", CANDIDATE_CREATED, ids=lambda case: str([*case.changes]))
def test_a_candidate_has_either_a_genome_or_a_name(api: ApiServer, there: str, case: Case) -> None:
    _assert_refused(api.try_create(changed(good_candidate(there, "new"), case.changes)), case)


def test_a_baseline_is_accepted(api: ApiServer, there: str) -> None:
    baseline = {"spec.genome": GONE, "spec.name": "average", "spec.stage": "baselines"}
    _accepted(api.try_create(changed(good_candidate(there, "new"), baseline)))


@pytest.mark.parametrize("case", CANDIDATE_REPLACED, ids=lambda case: str([*case.changes]))
def test_a_candidate_cannot_be_edited(api: ApiServer, there: str, case: Case) -> None:
    _assert_refused(_try_edit(api, good_candidate(there, "open"), case.changes), case)


@pytest.mark.parametrize("case", CANDIDATE_TOLD, ids=lambda case: str(case.changes))
def test_a_fitness_needs_a_success_and_a_success_a_fitness(api: ApiServer, there: str, case: Case) -> None:
    _assert_refused(api.patch_status(good_candidate(there, "open"), case.changes, dryRun="All"), case)


@pytest.mark.parametrize(
    "status",
    [SUCCEEDED, {"outcome": "Failed", "reason": "OutOfMemory", "message": "more memory"}, {"attempts": 1, "waits": 1}],
    ids=["succeeded", "failed", "waits"],
)
def test_an_open_candidate_can_be_told(api: ApiServer, there: str, status: dict[str, Any]) -> None:
    _accepted(api.patch_status(good_candidate(there, "open"), status, dryRun="All"))


@pytest.mark.parametrize("case", CANDIDATE_RETOLD, ids=lambda case: str(case.changes))
def test_a_finished_candidate_cannot_be_told_anew(api: ApiServer, there: str, case: Case) -> None:
    _assert_refused(api.patch_status(good_candidate(there, "finished"), case.changes, dryRun="All"), case)


def test_the_last_fields_of_a_status_cannot_be_taken_away_with_the_whole(api: ApiServer, there: str) -> None:
    place = f"/apis/evomerge.dev/v1alpha1/namespaces/{there}/mergecandidates/finished/status"
    found = api.request("GET", place).body
    del found["status"]
    _assert_refused(api.request("PUT", place, found, dryRun="All"), CANDIDATE_RETOLD[0])


@pytest.mark.parametrize("kind", EVERY_CASE)
def test_every_rule_of_the_schema_is_broken_by_a_case(api: ApiServer, kind: str) -> None:
    tried = {(case.place, case.message) for case in EVERY_CASE[kind]}
    assert set(_rules(_schema(api, kind), "")) == tried


def test_every_bound_and_type_of_the_schema_is_kept(api: ApiServer, there: str) -> None:
    """The changes are made from the schema itself: one for each thing that it asks of each field."""
    evomerge, candidate = good_evomerge(there), good_candidate(there, "open")
    tries: list[tuple[dict[str, Any], str, Callable[[Any], Answer]]] = [
        (evomerge, "spec", lambda spec: api.try_create({**good_evomerge(there, "new"), "spec": spec})),
        (candidate, "spec", lambda spec: api.try_create({**good_candidate(there, "new"), "spec": spec})),
        (evomerge, "status", lambda status: _try_status(api, evomerge, status)),
        (candidate, "status", lambda status: _try_status(api, candidate, status)),
    ]
    wrong, count = [], 0
    for document, part, ask in tries:
        good = {"spec": document.get("spec"), "status": {}}[part]
        for broken in breaks(_schema(api, document["kind"])["properties"][part], good, part):
            count += 1
            answer = ask(broken.document)
            if not _names(answer, broken):
                wrong.append(f"{document['kind']} {broken.place} ({broken.what}): {answer.code} {answer.words[:300]}")
    assert not wrong
    assert count > 300


def test_an_unknown_field_is_refused_by_its_path(cluster: Cluster, there: str) -> None:
    evomerge = good_evomerge(there, "new")
    evomerge["spec"]["worker"]["replicas"] = 3
    evomerge["spec"]["stages"][0]["search"]["candidate"] = 100
    with pytest.raises(KubectlError) as refused:
        cluster.apply(json.dumps(evomerge))
    for path in ("spec.worker.replicas", "spec.stages[0].search.candidate"):
        assert f'unknown field "{path}"' in str(refused.value)


def test_the_words_of_a_refusal_reach_whoever_applies(cluster: Cluster, there: str) -> None:
    evomerge = changed(good_evomerge(there, "new"), {"spec.models.0.uri": "models/one"})
    with pytest.raises(KubectlError) as refused:
        cluster.apply(json.dumps(evomerge))
    assert str(refused.value) == (
        'The EvoMerge "new" is invalid: spec.models[0].uri: Invalid value: "models/one": a model must lie at '
        "s3://bucket/folder or hf://org/name, perhaps with @commit or @branch: "
        "a cluster reaches no file:// and no relative path"
    )


@pytest.mark.parametrize("name", ["evomerge", "evomerges", "em", "evomerge.v1alpha1.evomerge.dev"])
def test_kubectl_finds_evomerges_and_nothing_else_by_every_name(cluster: Cluster, there: str, name: str) -> None:
    found = cluster.get(name, f"--namespace={there}")["items"]
    assert sorted((item["kind"], item["metadata"]["name"]) for item in found) == [
        ("EvoMerge", "baseless"),
        ("EvoMerge", "good"),
    ]


def test_kubectl_finds_all_that_is_ours_by_the_category(cluster: Cluster, there: str) -> None:
    found = cluster.kubectl("get", "evolution", f"--namespace={there}", "--output=name").split()
    assert sorted(found) == [
        "evomerge.evomerge.dev/baseless",
        "evomerge.evomerge.dev/good",
        "mergecandidate.evomerge.dev/finished",
        "mergecandidate.evomerge.dev/open",
    ]


def test_kubectl_explains_every_field(cluster: Cluster, there: str) -> None:
    assert "The pool that is merged." in cluster.kubectl("explain", "evomerge.spec")
    assert "The most, as in nvidia.com/gpu" in cluster.kubectl("explain", "em.spec.worker.resources.limits")
    assert "Higher is better." in cluster.kubectl("explain", "emc.status.fitness")


_NEEDS_THE_OPERATOR: dict[str, tuple[dict[str, Any], str]] = {
    "extract": (
        {"spec.evaluation.objectives.0.extract": "[0-9"},
        'spec.evaluation.objectives[0].extract: "[0-9" is not a regular expression: '
        "unterminated character set at position 0",
    ),
    "regex": (
        {"spec.stages.0.parameterSpace.groups": {"patterns": [{"name": "mlp", "regex": "mlp("}]}},
        'spec.stages[0].parameterSpace.groups.patterns[0].regex: "mlp(" is not a regular expression: '
        "missing ), unterminated subpattern at position 3",
    ),
    "nothing": (
        {"spec.stages.0.parameterSpace.groups": {"patterns": [{"name": "eyes", "regex": "vision"}]}},
        'spec.stages[0].parameterSpace.groups: pattern eyes: no tensor is left that "vision" matches (names are like '
        "lm_head.weight); mend it, or leave the pattern out",
    ),
    "blocks": (
        {"spec.stages.0.parameterSpace.groups": {"layers": 5}},
        "spec.stages[0].parameterSpace.groups: 5 is more blocks than the models have layers (4)",
    ),
}
"""Changes of a manifest that pass the API server, and what is said of each."""


@pytest.mark.usefixtures("operator", "s3_secret")
def test_what_only_the_operator_can_refuse_is_a_condition_with_the_reason(
    cluster: Cluster, images: Images, namespace: str, s3: S3Server
) -> None:
    s3.make_bucket(BUCKET)
    for name, (changes, _) in _NEEDS_THE_OPERATOR.items():
        cluster.apply(changed(light_manifest(name, namespace, images.light_worker, s3), changes))
    for name, (_, words) in _NEEDS_THE_OPERATOR.items():
        search = Search(cluster, namespace, name)
        status = search.fails(30)
        accepted = next(c for c in status["conditions"] if c["type"] == "Accepted")
        assert (accepted["status"], accepted["reason"], accepted["message"]) == ("False", "InvalidManifest", words)
        assert accepted["observedGeneration"] == 1
        assert search.children("jobs,mergecandidates") == []
    events = cluster.get("events", f"--namespace={namespace}", "--field-selector=reason=InvalidManifest")["items"]
    said = sorted((event["involvedObject"]["name"], event["type"], event["message"]) for event in events)
    assert said == sorted((name, "Warning", words) for name, (_, words) in _NEEDS_THE_OPERATOR.items())
    lines = cluster.kubectl("get", "em", f"--namespace={namespace}", "--no-headers").splitlines()
    assert [line.split()[:2] for line in lines] == [[name, "Failed"] for name in sorted(_NEEDS_THE_OPERATOR)]
    assert all("InvalidManifest" in line for line in lines)


def _try_edit(api: ApiServer, document: dict[str, Any], changes: Any) -> Answer:
    """Ask for the object that is there, changed."""
    metadata = document["metadata"]
    plural = document["kind"].lower() + "s"
    found = api.request(
        "GET", f"/apis/evomerge.dev/v1alpha1/namespaces/{metadata['namespace']}/{plural}/{metadata['name']}"
    )
    return api.try_replace(changed(found.body, changes))


def _try_status(api: ApiServer, document: dict[str, Any], status: Any) -> Answer:
    return api.patch_status(document, status, dryRun="All")


def _accepted(answer: Answer) -> None:
    assert answer.code in (200, 201), answer.words


def _assert_refused(answer: Answer, case: Case) -> None:
    """By the rule that the case names, and nothing else is said but what the case knows of."""
    assert answer.code == 422, answer.words
    ours = [(place, words) for place, words in answer.causes if not any(said in words for said in case.besides)]
    assert {(_place(place), _own_words(words)) for place, words in ours} == {(case.place, case.says or case.message)}


def _place(field: str) -> str:
    return re.sub(r"\[[^]]*\]", "[]", field)


def _own_words(message: str) -> str:
    """What follows `Invalid value: "…": `."""
    return re.sub(r'^Invalid value: ("(\\.|[^"\\])*": )?', "", message)


def _names(answer: Answer, broken: Break) -> bool:
    return answer.code == 422 and any(
        field == broken.place and re.search(broken.words, words) for field, words in answer.causes
    )


def _schema(api: ApiServer, kind: str) -> dict[str, Any]:
    name = f"{kind.lower()}s.evomerge.dev"
    crd = api.request("GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}").body
    schema: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def _rules(node: dict[str, Any], place: str) -> Iterator[tuple[str, str]]:
    for rule in node.get("x-kubernetes-validations", []):
        yield (place + rule.get("fieldPath", "")).removeprefix("."), rule["message"]
    for name, child in node.get("properties", {}).items():
        yield from _rules(child, f"{place}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from _rules(node[key], f"{place}[]")
