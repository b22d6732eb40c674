"""A search in the cluster, from `kubectl apply` to its end."""

from collections.abc import Callable
from typing import Any

from attempts import at_work, until
from operator_process import OperatorProcess
from s3 import S3Server
from searches import Search, log_of


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
