"""A search as its MergeCandidates tell it, in whatever order they are read, and what of a log is refused."""

import pickle
import random

import pytest

from candidate_pages import document_of, read, stored
from evomerge_contract.candidate import Genome
from evomerge_operator.plan.next import next_keys
from evomerge_operator.plan.proposer import Proposer
from evomerge_operator.plan.run import BASELINES, Key
from evomerge_operator.planning import calls
from evomerge_operator.services.live_run import LiveRun
from kube_documents import Document, evomerge, known_of, live_of

KNOWN = known_of(evomerge(), searching=True)
COUNT = 6
DOCUMENTS = stored(KNOWN, COUNT)
NOTHING_WRONG = None


@pytest.fixture
def documents() -> list[Document]:
    """The MergeCandidates of the baselines and of six candidates, in the order of the log."""
    made: list[Document] = pickle.loads(pickle.dumps(DOCUMENTS))
    return made


def searched(live: LiveRun) -> Proposer:
    proposer: Proposer = pickle.loads(live.proposer)
    return proposer


def following(live: LiveRun) -> list[Genome | None]:
    """The genomes that are asked for next."""
    _, starts = calls.starts(live.proposer, [], [Key("ps", COUNT), Key("ps", COUNT + 1)], {})
    return [start.genome for start in starts]


def fitness(live: LiveRun) -> list[float | None]:
    return [candidate.fitness for _, candidate in sorted(live.run.stage.progress.finished.items())]


@pytest.mark.parametrize("size", [1000, 4])
def test_the_order_in_which_they_are_read_is_no_matter(documents: list[Document], size: int) -> None:
    straight, problem = read(KNOWN, documents)
    assert problem is NOTHING_WRONG
    assert fitness(straight) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert straight.run.stage.progress.untold == [], "the search knows them from the log"
    best, source = straight.run.stage.progress.best(), straight.run.best_source()
    assert (straight.done, best, source) == (6, 0.5, 0.1)
    for seed in range(5):
        shuffled = random.Random(seed).sample(documents, len(documents))
        live, problem = read(KNOWN, shuffled, size)
        assert problem is NOTHING_WRONG
        assert (searched(live).search.asked, searched(live).search.told) == (COUNT, COUNT)
        assert (following(live), fitness(live)) == (following(straight), fitness(straight))


def test_an_unfinished_candidate_holds_the_fitness_back_but_not_the_genomes(documents: list[Document]) -> None:
    documents[4]["status"] = {"attempts": 2, "failures": 1, "disruptions": 1}
    live, problem = read(KNOWN, documents)
    assert problem is NOTHING_WRONG
    progress, search = live.run.stage.progress, searched(live).search
    assert (search.asked, progress.asked) == (COUNT, COUNT)
    assert (search.told, progress.leading) == (1, 1)
    assert progress.failures == {1: 1}
    assert live.disruptions == {Key("ps", 1): 1}
    assert next_keys(live.run, set(), 1) == [Key("ps", 1)]
    _, [again] = calls.starts(live.proposer, [], [Key("ps", 1)], progress.genomes)
    assert document_of(KNOWN, live, again)["spec"] == documents[4]["spec"]


def test_a_hole_is_told_and_a_missing_end_is_none(documents: list[Document]) -> None:
    _, problem = read(KNOWN, documents[:4] + documents[5:])
    assert problem == "the search log lacks candidate 1, though later ones are there; somebody has deleted it"
    assert read(KNOWN, documents[:-1])[1] is NOTHING_WRONG


def test_a_hole_in_a_page_may_be_filled_by_a_later_one(documents: list[Document]) -> None:
    moved = [*documents[:4], *documents[5:], documents[4]]
    live, problem = read(KNOWN, moved, 3)
    assert problem is NOTHING_WRONG
    assert searched(live).search.asked == COUNT


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("algorithm", "GA/0", "was begun with GA/0, this version has GA/1"),
        ("genome", "0.5,0.25", "holds a genome at ps 0 that decodes to another recipe than it did"),
    ],
)
def test_a_line_of_another_version_is_told(documents: list[Document], field: str, value: str, words: str) -> None:
    documents[3]["spec"][field] = value
    assert read(KNOWN, documents[:4])[1] == f"the search log {words}"


@pytest.mark.parametrize(
    ("line", "field", "value", "words"),
    [
        (3, "stage", "dfs", "there is no stage dfs"),
        (2, "index", 7, "there is no baseline 7"),
        (2, "genome", "0.5,0.5", "a baseline has no genome"),
        (3, "genome", None, "a candidate of the search has one"),
        (3, "genome", "0.5,half", "genome: String should match pattern"),
        (3, "genome", "0.5", "a genome of 1 genes for a space of 2"),
        (3, "index", -1, "index: Input should be greater than or equal to 0"),
        (3, "recipeDigest", "sha256:?", "recipeDigest: String should match pattern"),
        (3, "algorithm", None, "algorithm: Input should be a valid string"),
    ],
)
def test_a_candidate_that_is_none_of_the_search_is_refused(
    documents: list[Document], line: int, field: str, value: object, words: str
) -> None:
    documents[line]["spec"][field] = value
    _, problem = read(KNOWN, documents)
    assert problem is not None
    assert problem.startswith(f"the MergeCandidate {documents[line]['metadata']['name']} cannot be read: ")
    assert "\n" not in problem
    assert words in problem


def test_baselines_count_for_nothing_but_themselves(documents: list[Document]) -> None:
    live, _ = read(KNOWN, documents[:3])
    assert (live.done, fitness(live), live.run.stage.progress.best()) == (0, [], None)
    assert {candidate.stage for candidate in live.run.compared.finished.values()} == {BASELINES}
    assert not live.run.stage.progress.finished


def test_a_page_with_a_problem_leaves_the_search_as_it_was(documents: list[Document]) -> None:
    documents[5]["spec"]["algorithm"] = "GA/0"
    before = live_of(KNOWN)
    live, problem = read(KNOWN, documents)
    assert problem is not None
    assert (live.proposer, live.run.stage.progress.finished, live.open) == (before.proposer, {}, {})
