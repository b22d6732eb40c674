"""A search in the cluster, from `kubectl apply` to its end."""

from collections.abc import Callable
from typing import Any

from attempts import at_work, until
from operator_process import OperatorProcess
from s3 import S3Server
from searches import Search, exported, log_of


def test_a_search_succeeds(light_search: Callable[..., Search], operator: OperatorProcess, s3: S3Server) -> None:
    search = light_search("first")
    status = search.succeeds()
    assert status["candidates"] == "4/4"
    assert len(log_of(s3, search)) == 1 + 3 + 4


def test_two_searches_in_one_namespace_at_once_keep_their_candidates_apart(
    light_search: Callable[..., Search], operator: OperatorProcess, s3: S3Server, undisturbed: Search
) -> None:
    """The stages have the same name, and the name of one search begins with that of the other."""
    slow = {"evaluate": "sleep:4"}
    first = light_search("twin", parallelism=2, faults=slow)
    second = light_search("twin-ps", parallelism=2, faults=slow, stages=[_stage(candidates=6, seed=8)])
    until(first, lambda: at_work(first) and at_work(second))
    for search, count in ((first, 4), (second, 6)):
        assert search.succeeds()["candidates"] == f"{count}/{count}"
        uid = search.document()["metadata"]["uid"]
        assert set(search.candidates()) == {("baselines", i) for i in range(3)} | {("ps", i) for i in range(count)}
        assert {_owner(candidate) for candidate in search.candidates().values()} == {uid}
        assert [(c["stage"], c["index"]) for c in _candidates(s3, search)] == [
            *(("baselines", i) for i in range(3)),
            *(("ps", i) for i in range(count)),
        ]
    undisturbed.succeeds()
    assert log_of(s3, first) == log_of(s3, undisturbed)
    assert _genomes(s3, first) & _genomes(s3, second) == {(0.5, 0.5)}, "where every search begins"


def test_stages_follow_each_other_whatever_becomes_of_the_operator(
    light_search: Callable[..., Search], operator: OperatorProcess, s3: S3Server
) -> None:
    """Parameter space, then data flow over its winner and a model; the operator is killed in each step."""
    flow = {"dataFlowSpace": {"models": ["ps", "two"], "scales": {"per": "Slot"}}}
    second = {"name": "dfs", "search": {"algorithm": "SepCMA-ES", "candidates": 6, "seed": 9}} | flow
    stages = [_stage(candidates=4, seed=7), second]
    calm = light_search("calm", stages=stages)
    calm.succeeds()
    slow = dict.fromkeys(("select", "export", "prepare", "conclude"), "sleep:3")
    search = light_search("staged", stages=stages, faults=slow)
    for step in ("select-a1", "write-a1", "prepare-a2", "dfs-00002-a1", "select-a2", "conclude-a1"):
        until(search, lambda step=step: any(name.startswith(step) for name in at_work(search)), seconds=60)
        operator.kill()
        operator.start()
    status = search.succeeds()
    assert [(stage["name"], stage["digest"][:7]) for stage in status["stages"]] == [
        ("ps", "sha256:"),
        ("dfs", "sha256:"),
    ]
    assert {step: counters["succeeded"] for step, counters in status["steps"].items()} == {
        "prepare": 3,
        "select": 2,
        "write": 2,
        "conclude": 1,
        "export": 1,
    }
    log = log_of(s3, search)
    assert [(c["candidate"]["stage"], c["candidate"]["index"]) for c in log[1:]] == [
        *(("baselines", i) for i in range(3)),
        *(("ps", i) for i in range(4)),
        *(("dfs", i) for i in range(6)),
    ]
    assert log == log_of(s3, calm)
    assert exported(s3, search, "model.safetensors") == exported(s3, calm, "model.safetensors")
    left = s3.client().list_objects_v2(Bucket="searches", Prefix=f"{search.namespace}/staged/")["Contents"]
    assert not [found["Key"] for found in left if "/stages/" in found["Key"]], "its winners have gone with the run"


def _stage(candidates: int, seed: int) -> dict[str, Any]:
    return {
        "name": "ps",
        "parameterSpace": {"method": "linear", "parameters": {"weight": {"min": "0", "max": "1"}}},
        "search": {"candidates": candidates, "lag": 4, "seed": seed},
    }


def _owner(candidate: dict[str, Any]) -> str:
    [owner] = candidate["metadata"]["ownerReferences"]
    return str(owner["uid"])


def _candidates(s3: S3Server, search: Search) -> list[dict[str, Any]]:
    return [entry["candidate"] for entry in log_of(s3, search)[1:]]


def _genomes(s3: S3Server, search: Search) -> set[tuple[float, ...]]:
    return {tuple(c["genome"]) for c in _candidates(s3, search) if c.get("genome") is not None}
