"""A search as its MergeCandidates tell it, in whatever order they are read, and what of a log is refused."""

import random
from typing import Any

import pytest
from evomerge_operator.prepared import make_run
from evomerge_operator.services.search import Search

from evomerge_contract.report import EvaluateResult, Report
from evomerge_contract.status import CandidateStatus
from evomerge_operator import plan
from evomerge_operator.kube.candidates import candidate_document, finished_status
from evomerge_operator.plan import BASELINES, Key
from evomerge_operator.services.act import candidate_spec
from kube_documents import evomerge, known_of, manifest_of, prepared_of

MADE = evomerge()


def empty() -> Search:
    return Search(make_run(manifest_of(MADE), prepared_of(MADE), "s3://out"))


def stored(count: int = 6) -> list[dict[str, Any]]:
    """The MergeCandidates of the baselines and of so many candidates, in the order of the log."""
    parent, search, documents = known_of(MADE).parent, empty(), []
    for start in plan.next_starts(search.run, search.state(set()), count + 3):
        document = candidate_document(parent, candidate_spec(search, start))
        document["metadata"] |= {"uid": "u", "resourceVersion": "1"}
        result = EvaluateResult(scores={"sums": start.key.index / 10})
        report = Report(task=start.task.digest, kind="evaluate", outcome="Succeeded", evaluate=result)
        candidate = plan.settle(search.run, search.state(set()), start, report)
        assert candidate is not None
        document["status"] = finished_status(candidate, CandidateStatus(), "s3://out").wire()
        documents.append(document)
    return documents


def read(documents: list[dict[str, Any]]) -> tuple[Search, list[str | None]]:
    """A search that has read them, and what was found wrong."""
    search = empty()
    problems = [search.problem_of(search.take(document)) for document in documents]
    return search, [*problems, search.hole()]


def test_the_order_in_which_they_are_read_is_no_matter() -> None:
    documents = stored()
    straight, problems = read(documents)
    assert problems == [None] * 10
    assert straight.fitness == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert (straight.done, straight.best(), straight.best_source()) == (6, 0.5, 0.1)
    for seed in range(5):
        shuffled = random.Random(seed).sample(documents, len(documents))
        search, _ = read(shuffled)
        assert (search.genomes, search.fitness, search.hole()) == (straight.genomes, straight.fitness, None)


def test_an_unfinished_candidate_holds_the_fitness_back_but_not_the_genomes() -> None:
    documents = stored()
    documents[4]["status"] = {"attempts": 2, "failures": 1, "disruptions": 1}
    search, problems = read(documents)
    assert problems == [None] * 10
    assert (len(search.genomes), search.fitness) == (6, [0.0])
    state = search.state(set())
    assert state.attempts == {Key("ps", 1): 1}
    assert search.disruptions == {Key("ps", 1): 1}
    assert plan.next_starts(search.run, state, 1)[0].key == Key("ps", 1)


def test_a_hole_is_told_and_a_missing_end_is_none() -> None:
    documents = stored()
    _, problems = read(documents[:4] + documents[5:])
    assert problems[-1] == "lacks candidate 1, though later ones are there; somebody has deleted it"
    assert read(documents[:-1])[1][-1] is None


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("algorithm", "GA/0", "was begun with GA/0, this version has GA/1"),
        ("genome", "0.5,0.25", "holds a genome at ps 0 that decodes to another recipe than it did"),
    ],
)
def test_a_line_of_another_version_is_told(field: str, value: str, words: str) -> None:
    documents = stored()
    documents[3]["spec"][field] = value
    assert read(documents)[1][3] == words


def test_a_candidate_of_no_stage_of_the_search_is_refused() -> None:
    document = stored()[3]
    document["spec"]["stage"] = "dfs"
    with pytest.raises(ValueError, match="there is no stage dfs"):
        empty().take(document)


def test_baselines_count_for_nothing_but_themselves() -> None:
    search, _ = read(stored()[:3])
    assert (search.done, search.fitness, search.best()) == (0, [], None)
    assert {key.stage for key in search.finished} == {BASELINES}
