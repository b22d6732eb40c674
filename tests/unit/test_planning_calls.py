"""What runs in helper processes: proposers go from call to call as pickles, and go on as if they had never been one."""

import asyncio
import gzip
import json
from collections.abc import Sequence
from typing import Any

import pytest

from begun import begun
from candidate_pages import document_of, page, pages, read, settled, stored
from documents import LAYOUT, prepared, stage
from evomerge_contract.candidate import Candidate, Genome
from evomerge_contract.genome import PACKED_ABOVE
from evomerge_contract.manifest import EvoMerge
from evomerge_operator.plan.proposer import Start
from evomerge_operator.plan.run import BASELINES, Key
from evomerge_operator.planning import calls
from evomerge_operator.planning.pool import Pool
from evomerge_operator.search import Outcome
from evomerge_operator.services.known import Known
from evomerge_operator.services.live_run import LiveRun
from kube_documents import Document, evomerge, known_of, live_of, manifest_of, prepared_of
from simulated_workers import quality

CANDIDATES, LAG = 60, 5
ALGORITHMS = ("GA", "CMA-ES", "SepCMA-ES", "Random")
MANY = PACKED_ABOVE // 2 + 10
"""Layers of two models, each with a gene: genomes are packed."""


def known_with(**search: Any) -> Known:
    one = stage(groups={"layers": 2}, **{"candidates": CANDIDATES, "lag": LAG, "seed": 3} | search)
    return known_of(evomerge(stages=[one]), searching=True)


def with_many_genes() -> Known:
    made = evomerge(stages=[stage(groups={"everyLayer": True}, candidates=20, lag=LAG, seed=3)])
    known = known_of(made, searching=True)
    known.prepared = prepared(manifest_of(made), LAYOUT.model_copy(update={"layers": MANY}))
    return known


def score(start: Start) -> float | None:
    """A score of the recipe, with ties; every ninth candidate fails."""
    return None if start.key.index % 9 == 8 else round(quality(start.task), 2)


def asked_at_once(known: Known, count: int) -> list[Genome]:
    """The genomes of a search whose proposer is never pickled."""
    assert known.manifest is not None
    assert known.prepared is not None
    run, proposer = begun(known.manifest, known.prepared.layout)
    live, genomes = LiveRun(run, b""), []
    for index in range(count):
        [start] = proposer.starts([Key("ps", index)], {})
        proposer.tell([(index, settled(live, start, score(start)).told)])
        assert start.genome is not None
        genomes.append(start.genome)
    return genomes


def asked_on(live: LiveRun, first: int, count: int) -> list[Genome]:
    """The genomes that follow, by one call each."""
    proposer, outcomes, genomes = live.proposer, list[tuple[int, Outcome]](), []
    for index in range(first, count):
        proposer, [start] = calls.starts(proposer, outcomes, [Key("ps", index)], {})
        outcomes = [(index, settled(live, start, score(start)).told)]
        assert start.genome is not None
        genomes.append(start.genome)
    return genomes


def test_a_manifest_is_checked_and_its_mistakes_are_values() -> None:
    made = evomerge()
    metadata = {key: made["metadata"][key] for key in ("name", "namespace")}
    plain: Document = {key: made[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": metadata}
    assert calls.check(plain, "tiny") == manifest_of(made)
    wrong = plain | {"spec": plain["spec"] | {"parallelism": 0, "colour": "red"}}
    problems = calls.check(wrong, "tiny")
    assert not isinstance(problems, EvoMerge)
    assert [problem.path for problem in problems] == ["spec.parallelism", "spec.colour"]


@pytest.mark.parametrize(
    ("one", "field"),
    [
        (stage(groups={"layers": 5}), "spec.stages[0].parameterSpace.groups"),
        (stage(algorithm="SepCMA-ES", population=4096), "spec.stages[0].search"),
    ],
)
def test_what_does_not_fit_the_models_is_told_as_a_value_when_the_run_begins(one: Document, field: str) -> None:
    made = evomerge(stages=[one])
    problems = calls.begin(manifest_of(made), prepared_of(made), "s3://out", None)
    assert isinstance(problems, list)
    assert [problem.path for problem in problems] == [field]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_search_that_is_passed_from_call_to_call_asks_for_the_same_genomes(algorithm: str) -> None:
    known = known_with(algorithm=algorithm)
    assert asked_on(live_of(known), 0, CANDIDATES) == asked_at_once(known, CANDIDATES)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_search_that_is_read_page_by_page_goes_on_with_the_same_genomes(algorithm: str, size: int) -> None:
    known = known_with(algorithm=algorithm)
    straight = asked_at_once(known, CANDIDATES)
    for finished in (1, 23):
        live, problem = read(known, stored(known, finished, score), size)
        assert problem is None
        assert asked_on(live, finished, CANDIDATES) == straight[finished:]


def test_packed_genomes_are_read_and_gone_on_from() -> None:
    known = with_many_genes()
    straight = asked_at_once(known, 12)
    assert len(straight[0]) > PACKED_ABOVE
    documents = stored(known, 8, score)
    assert all(document["spec"]["genome"].startswith("3:") for document in documents[3:])
    documents[6]["status"] = {"attempts": 1}
    live, problem = read(known, documents, 4)
    assert problem is None
    assert live.run.stage.progress.genomes == {3: straight[3]}
    live.run.stage.progress.finish(_finished(live, 3, straight[3]))
    proposer, [start] = calls.starts(live.proposer, live.run.stage.progress.untold, [Key("ps", 8)], {})
    assert start.genome == straight[8]
    live.proposer = proposer
    assert asked_on(live, 9, 12) == straight[9:]


def _finished(live: LiveRun, index: int, genome: Genome) -> Candidate:
    _, [start] = calls.starts(live.proposer, [], [Key("ps", index)], {index: genome})
    return settled(live, start, score(start))


def test_candidates_that_were_asked_for_are_made_tasks_again_from_their_genomes() -> None:
    live = live_of(known_with())
    keys = [Key(BASELINES, 1), Key("ps", 0), Key("ps", 1)]
    proposer, first = calls.starts(live.proposer, [], keys, {})
    genomes = {start.key.index: start.genome for start in first if start.genome is not None}
    _, again = calls.starts(proposer, [], keys[::-1], genomes)
    assert again[::-1] == first
    with pytest.raises(ValueError, match="candidate 4 is asked for, and it is 2's turn"):
        calls.starts(proposer, [], [Key("ps", 4)], genomes)


def test_a_proposer_that_is_too_large_to_be_passed_on_takes_too_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    live = live_of(known_with())
    monkeypatch.setattr(calls, "_STATE_BYTES", len(live.proposer) // 2)
    with pytest.raises(MemoryError):
        calls.starts(live.proposer, [], [Key("ps", 0)], {})


def test_the_facts_of_an_export_are_collected_page_by_page() -> None:
    known = known_with()
    documents = stored(known, 7, score, baselines=False)
    documents[3]["status"] = {"attempts": 1}
    found = _facts(list(pages(documents, 2)))
    assert [candidate.index for candidate in found] == [0, 1, 2, 4, 5, 6]
    assert [candidate.index for candidate in _facts(list(pages(documents[3:], 1)))] == [4, 5, 6], "the first is empty"
    assert [candidate.genome for candidate in found] == [
        genome for index, genome in enumerate(asked_at_once(known, 7)) if index != 3
    ]
    assert _facts([page([])]) == []


def _facts(listed: Sequence[bytes]) -> list[Candidate]:
    """The candidates of all pages, as the export's pod reads them."""
    members, collected = [], 0
    for number, text in enumerate(listed):
        member, count, following = calls.facts_part(text, collected > 0)
        assert bool(following) == (number < len(listed) - 1)
        members.append(member)
        collected += count
    text = gzip.decompress(b"".join([gzip.compress(b"["), *members, gzip.compress(b"]")]))
    return [Candidate.model_validate(candidate) for candidate in json.loads(text)]


def test_all_calls_work_in_a_helper_process() -> None:
    """Whatever goes there and comes back can be pickled."""
    made = evomerge(stages=[stage(candidates=8, lag=4, seed=3)])
    metadata = {key: made["metadata"][key] for key in ("name", "namespace")}
    plain = {key: made[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": metadata}

    async def there() -> tuple[object, object, list[Genome | None]]:
        pool = Pool()
        manifest = await pool.call("me", calls.check, plain, "tiny")
        problems = await pool.call("me", calls.check, plain | {"spec": {}}, "tiny")
        run, proposer = await pool.call("me", calls.begin, manifest, prepared_of(made), "s3://out", ["a", "b"])
        known = known_of(made, searching=True)
        live = LiveRun(run, proposer)
        keys = [Key(BASELINES, 0), *(Key("ps", index) for index in range(4))]
        proposer, starts = await pool.call("me", calls.starts, proposer, [], keys, {})
        finished = [settled(live, start, 0.5) for start in starts]
        for candidate in finished[1:]:
            run.stage.progress.finish(candidate)
        documents = stored(known, 3, baselines=False)
        documents.append(document_of(known, live, starts[-1], {"attempts": 1}))
        found = await pool.call("me", calls.read, live.proposer, page(documents))
        assert found.problem is None
        indices = await pool.call("me", calls.ranked, proposer, live.run.stage.progress.results)
        task = await pool.call("me", calls.select_task, proposer, finished[1:])
        assert [finalist.index for finalist in task.finalists] == indices
        return manifest, problems, [item.genome for item in found.items]

    manifest, problems, genomes = asyncio.run(there())
    assert manifest == manifest_of(made)
    assert problems == calls.check(plain | {"spec": {}}, "tiny")
    assert [genome is None for genome in genomes] == [True, True, True, False]
