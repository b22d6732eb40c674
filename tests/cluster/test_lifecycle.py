"""Suspend and resume, more and fewer pods at once, deletion, and what is left when a search has ended."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from attempts import at_work, counted, jobs_of, pod_at_work, prefix_of, until, witness
from audit_log import job_creates
from kubernetes_cluster import Cluster, KubectlError
from operator_process import OperatorProcess
from s3 import S3Server
from searches import Search, exported, light_manifest, log_of

_TICK_SECONDS = 5
_EVALUATIONS = [*(f"baselines-{i:05d}-a1" for i in range(3)), *(f"ps-{i:05d}-a1" for i in range(4))]
_STEPS = ["prepare-a1", "select-a1", "conclude-a1", "export-a1"]
_CHILDREN = ("jobs", "pods", "configmaps", "mergecandidates")


def test_parallelism_takes_effect_at_once_and_a_suspended_search_goes_on_as_if_it_had_not_been(
    light_search: Callable[..., Search], operator: OperatorProcess, s3: S3Server, undisturbed: Search
) -> None:
    faults = {f"baselines/{i}": "sleep:12" for i in range(3)} | {f"ps/{i}": "hang" for i in range(4)}
    search = light_search("held", parallelism=2, faults=faults, budget={"deadline": "1h", "disruptions": 0})
    until(search, lambda: at_work(search) == set(_EVALUATIONS[:2]))

    search.patch({"parallelism": 4})
    until(search, lambda: set(jobs_of(search)) == set(_EVALUATIONS[:4]), seconds=_TICK_SECONDS)
    search.patch({"parallelism": 1})
    until(search, lambda: at_work(search) == set(_EVALUATIONS[:4]))
    search.wait(lambda status: status["done"] == 0 and len(_finished(search)) == 3)
    assert job_creates(search) == Counter(["prepare-a1", *_EVALUATIONS[:4]]), (
        "fewer pods: those there are run to their end"
    )
    search.patch({"parallelism": 3})
    until(search, lambda: set(jobs_of(search)) == set(_EVALUATIONS[3:6]), seconds=_TICK_SECONDS)

    until(search, lambda: at_work(search) == set(_EVALUATIONS[3:6]))
    before = counted(search)
    search.patch({"suspend": True})
    suspended = search.wait(lambda status: status["phase"] == "Suspended")
    assert (suspended["reason"], suspended["message"]) == ("Suspended", "spec.suspend is set; unset it to go on")
    until(search, lambda: not search.children("jobs") and not search.children("pods"))
    assert counted(search) == before
    assert "activeSince" not in suspended
    assert suspended["activeSeconds"] > 12  # the baselines'

    search.patch({"suspend": False, "worker": {"podTemplate": None}})
    resumed = search.wait(lambda status: status["phase"] == "Searching")
    assert resumed["activeSeconds"] == suspended["activeSeconds"], "the deadline has stood still"
    assert resumed["activeSince"] > suspended["conditions"][2]["lastTransitionTime"]
    search.succeeds()
    assert counted(search) == {
        name.removesuffix("-a1").replace("-0000", "-"): {"attempts": 1, "outcome": "Succeeded"} for name in _EVALUATIONS
    }
    # Those that were suspended had made no attempt that counts, so they bear the names they had.
    assert job_creates(search) == Counter([*_STEPS, *_EVALUATIONS, *_EVALUATIONS[3:6]])
    assert log_of(s3, search) == log_of(s3, undisturbed)


def test_a_deleted_search_leaves_nothing_and_another_of_its_name_begins_anew(
    cluster: Cluster, light_search: Callable[..., Search], operator: OperatorProcess, s3: S3Server
) -> None:
    """Its tasks are too long for an annotation, so that there are ConfigMaps too."""
    first = light_search("again", candidates=2, parallelism=3, faults={"ps/0": "hang", "ps/1": "hang"}, **_long_tasks())
    pod_at_work(first, "ps-00001-a1")
    old = prefix_of(first)
    config_maps = [m["metadata"]["name"].removeprefix(old) for m in first.children("configmaps")]
    assert "ps-00001-a1" in {name.rpartition("-")[0] for name in config_maps}
    assert "finalizers" not in first.document()["metadata"]
    first.delete("--timeout=30s")
    until(first, lambda: not _left(first))

    second = light_search("again", candidates=2, parallelism=3, **_long_tasks())
    second.succeeds()
    new = prefix_of(second)
    assert new != old
    assert [c["metadata"]["name"] for c in second.children("mergecandidates")] == [
        *(f"{new}baselines-{i:05d}" for i in range(3)),
        *(f"{new}ps-{i:05d}" for i in range(2)),
    ]
    made = [*_STEPS, *_EVALUATIONS[:5]]
    assert job_creates(second) == Counter(made) + Counter(["prepare-a1", *_EVALUATIONS[:5]])
    folder = f"s3://searches/{second.namespace}/again/reports/{second.document()['metadata']['uid']}/"
    assert all(c["status"]["reportUri"].startswith(folder) for c in second.children("mergecandidates"))
    assert not second.children("jobs")
    assert [m["metadata"]["name"] for m in second.children("configmaps")] == [f"{new}lock"]


def test_without_an_operator_deletion_of_a_search_and_of_its_namespace_completes(
    cluster: Cluster, light_search: Callable[..., Search], operator: OperatorProcess
) -> None:
    searches = [light_search(name, parallelism=2, faults={"evaluate": "hang"}) for name in ("one", "two")]
    begun = set(_EVALUATIONS[:2])
    for search in searches:
        until(search, lambda search=search: at_work(search) == begun)
    operator.kill()

    searches[0].delete("--timeout=30s")
    until(searches[0], lambda: not _left(searches[0]))
    assert at_work(searches[1]) == begun
    cluster.kubectl("delete", "namespace", searches[1].namespace, "--timeout=90s")
    with pytest.raises(KubectlError, match="not found"):
        cluster.get(f"namespace/{searches[1].namespace}")


def test_a_job_of_the_same_name_that_is_not_its_own_is_neither_taken_for_it_nor_touched(
    cluster: Cluster, light_search: Callable[..., Search], operator: OperatorProcess
) -> None:
    search = light_search("squatted", suspend=True)
    search.wait(lambda status: status.get("phase") == "Suspended")
    name = f"{prefix_of(search)}prepare-a1"
    cluster.apply(_foreign_job(name, search.namespace))
    uid = cluster.get(f"job/{name}", f"--namespace={search.namespace}")["metadata"]["uid"]

    search.patch({"suspend": False})
    met = search.wait(lambda status: status.get("reason") == "JobRefused")
    assert f"the Job {search.namespace}/{name} is in the way: somebody else made it; delete it" in met["message"]
    assert cluster.get(f"job/{name}", f"--namespace={search.namespace}")["metadata"]["uid"] == uid

    cluster.kubectl("delete", f"job/{name}", f"--namespace={search.namespace}")
    search.succeeds()


def test_candidates_that_share_a_pod_share_no_failure_and_an_ended_search_goes_when_its_time_is_over(
    cluster: Cluster, light_search: Callable[..., Search], operator: OperatorProcess, s3: S3Server, undisturbed: Search
) -> None:
    late = light_search("late", faults={"prepare": "hang"}, budget={"deadline": "8s"})
    search = light_search("shared", parallelism=2, ttlSecondsAfterFinished=15, **_shared(s3))
    with witness(cluster, search.namespace) as seen:
        ended = late.fails()
        assert ended["reason"] == "DeadlineExceeded"
        assert ended["message"] == "it has worked for 8s, all that spec.budget.deadline allows"
        until(late, lambda: not late.children("jobs") and not late.children("pods"))
        search.succeeds()
        # Its note told the scores of the two others, so it has not failed for what became of one of its processes.
        assert seen.exit(search, "ps-00000-a1") == ("OOMKilled", 0)
    told = counted(search)
    assert told.pop("ps-1") == {"attempts": 2, "failures": 1, "outcome": "Succeeded"}
    assert list(told.values()) == [{"attempts": 1, "outcome": "Succeeded"}] * 6
    made = ["baselines-00000-a1", "ps-00000-a1", "ps-00003-a1", "ps-00001-a2"]
    assert job_creates(search) == Counter([*_STEPS, *made])
    _columns(cluster, search)
    _events(search)
    until(search, lambda: _is_gone(search) and not _left(search), seconds=40)
    assert log_of(s3, search) == log_of(s3, undisturbed)
    assert exported(s3, search, "model.safetensors")


def _columns(cluster: Cluster, search: Search) -> None:
    """What a person sees of a search and of its candidates."""
    namespace = f"--namespace={search.namespace}"
    head, row = cluster.kubectl("get", "em", search.name, namespace).splitlines()
    columns = ["NAME", "STATUS", "STAGE", "CANDIDATES", "BEST", "BEST SOURCE", "WHY", "AGE"]
    assert re.split("  +", head.strip()) == columns
    assert row.split()[:-1] == [search.name, "Succeeded", "ps", "4/4", "0.7469", "0.3222"]
    head, *rows = cluster.kubectl("get", "emc", namespace, f"--selector=evomerge.dev/name={search.name}").splitlines()
    assert head.split() == ["NAME", "STAGE", "GEN", "FITNESS", "OUTCOME", "SECONDS", "REASON", "AGE"]
    assert len(rows) == 7


def _events(search: Search) -> None:
    """One Event a phase, and no more."""
    about = f"--field-selector=involvedObject.uid={search.document()['metadata']['uid']}"
    events = search.cluster.get("events", f"--namespace={search.namespace}", about)["items"]
    said = Counter((event["type"], event["reason"], event["count"]) for event in events)
    phases = ("Preparing", "Searching", "Concluding", "Exporting", "Succeeded")
    assert said == Counter(("Normal", phase, 1) for phase in phases)


def _shared(s3: S3Server) -> dict[str, Any]:
    """Up to three candidates a pod; the session of one of them takes all memory once."""
    worker = light_manifest("", "", "", s3, faults={"ps/1/1": "oom"})["spec"]["worker"]
    return {"worker": {"podTemplate": worker["podTemplate"], "candidatesPerPod": 3}}


def _foreign_job(name: str, namespace: str) -> dict[str, Any]:
    """A Job that somebody else made; it never starts."""
    container = {"name": "foreign", "image": "foreign"}
    spec = {"suspend": True, "template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def _long_tasks() -> dict[str, Any]:
    """An evaluation whose tasks take more than 32 KiB."""
    objectives = []
    for number in range(8):
        folder = f"s3://data/{number}/{'x' * 900}"
        jsonl = {split: f"{folder}/{split}.jsonl" for split in ("search", "select", "test")}
        pattern = {"extract": "答" * 500, "metric": "exact_match"}
        objectives.append({"name": f"sums-{number}", "jsonl": jsonl, **pattern})
    return {"evaluation": {"objectives": objectives}}


def _finished(search: Search) -> list[str]:
    return [name for name, counters in counted(search).items() if "outcome" in counters]


def _left(search: Search) -> list[str]:
    """What the search has made and is still there."""
    return [f"{kind}/{item['metadata']['name']}" for kind in _CHILDREN for item in search.children(kind)]


def _is_gone(search: Search) -> bool:
    try:
        search.document()
    except KubectlError as error:
        return "not found" in str(error)
    return False
