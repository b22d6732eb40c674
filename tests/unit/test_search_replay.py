"""Genome k depends on outcomes by index alone: no schedule, number of workers or kill changes any genome."""

import heapq
import pickle
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge_contract.candidate import Genome
from evomerge_contract.manifest import Algorithm, Jsonl, Objective, Search
from evomerge_operator.search import BINARY, Gene, Outcome, SearchAlgorithm, make_search

ALGORITHMS: tuple[Algorithm, ...] = ("GA", "CMA-ES", "SepCMA-ES", "Random")
STAGE = "ps"
OBJECTIVES = [Objective(name="o", jsonl=Jsonl(search="1", select="2", test="3"), metric="acc")]


def genes(count: int) -> list[Gene]:
    return [Gene("weight", str(i), None, low=-0.5, high=1.0 + i, start=0.25) for i in range(count)]


def flow_genes(count: int, algorithm: Algorithm) -> list[Gene]:
    """So many slots as a data-flow space has them, and a scale."""
    if algorithm in BINARY:
        slots = [Gene("slot", str(i), "a", 0, 1, float(i % 2), kind="binary", spread=0.25) for i in range(count)]
    else:
        slots = [Gene("slot", str(i), "a", -1, 1, 0.7 if i % 2 else -0.7, spread=1 / 6) for i in range(count)]
    return [*slots, Gene("scale", "0", "a", 0.5, 1.5, 1.0, spread=0.05)]


def new_search(search: Search, dimensions: int, stage: str = STAGE, *, flow: bool = False) -> SearchAlgorithm:
    if flow:
        made = flow_genes(dimensions, search.algorithm)
        ones = (1, max(1, dimensions - 1)) if search.algorithm in BINARY else None
        return make_search(search, made, stage, OBJECTIVES, ones)
    return make_search(search, genes(dimensions), stage, OBJECTIVES)


def scored(fitness: float | None) -> Outcome:
    return None if fitness is None else {"o": fitness}


def quantised(genome: Genome) -> float:
    """Higher is better, with many ties, like an accuracy on few items."""
    return round(-sum((value - 0.4) ** 2 for value in genome) / len(genome), 2)


@dataclass
class Case:
    """A search, what its candidates come to, and everything about the machines that must not matter."""

    search: Search
    dimensions: int
    failures: frozenset[int]
    durations: list[int] = field(default_factory=lambda: [1])
    workers: int = 1
    kills: frozenset[int] = frozenset()
    flow: bool = False

    def outcome(self, index: int, genome: Genome) -> float | None:
        return None if index in self.failures else quantised(genome)


def simulate(case: Case) -> list[Genome]:
    """Fill every free slot while the next index can be asked; a kill loses all but the candidates that finished.

    After a kill the finished candidates' genomes are read back and only the others are asked again. A killed moment
    is an instant of the simulated clock, so that kills hit any mixture of running and finished candidates.
    """
    finished: dict[int, tuple[Genome, float | None]] = {}
    now, alive_until = 0, sorted(case.kills)
    while True:
        killed_at = alive_until.pop(0) if alive_until else None
        now = _life(case, finished, now, killed_at)
        if len(finished) == case.search.candidates:
            return [finished[k][0] for k in range(case.search.candidates)]


def _life(case: Case, finished: dict[int, tuple[Genome, float | None]], now: int, killed_at: int | None) -> int:
    """One process from its construction to its kill, or to the end of the search; the time it ended at."""
    algorithm = new_search(case.search, case.dimensions, flow=case.flow)
    genomes: list[Genome] = []
    running: list[tuple[int, int]] = []
    while True:
        while len(running) < case.workers and len(genomes) < case.search.candidates:
            index = len(genomes)
            while algorithm.told < index and algorithm.told in finished:
                algorithm.tell(scored(finished[algorithm.told][1]))
            if index in finished:
                genomes.append(finished[index][0])
                algorithm.replay(genomes[-1])
                continue
            if algorithm.told < index - case.search.lag + 1:
                break
            genomes.append(algorithm.ask())
            algorithm = pickle.loads(pickle.dumps(algorithm))
            heapq.heappush(running, (now + case.durations[index % len(case.durations)], index))
        if not running:
            return now
        if killed_at is not None and running[0][0] > max(killed_at, now):
            return max(killed_at, now)
        now, index = heapq.heappop(running)
        finished[index] = (genomes[index], case.outcome(index, genomes[index]))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    search = Search(
        algorithm=draw(st.sampled_from(ALGORITHMS)),
        candidates=draw(st.integers(1, 70)),
        seed=draw(st.integers(0, 2**31 - 1)),
        population=draw(st.sampled_from([None, 4, 5, 7])),
        lag=draw(st.integers(1, 12)),
    )
    return Case(
        search,
        dimensions=draw(st.integers(1, 5)),
        failures=draw(st.frozensets(st.integers(0, 70), max_size=30) | st.just(frozenset(range(12, 50)))),
        durations=draw(st.lists(st.integers(1, 30), min_size=1, max_size=20)),
        workers=draw(st.sampled_from([1, 2, 4, 9])),
        kills=draw(st.frozensets(st.integers(0, 300), max_size=4)),
        flow=draw(st.booleans()),
    )


@settings(max_examples=250, deadline=None)
@given(cases())
def test_any_durations_workers_and_kills_give_the_same_genomes(case: Case) -> None:
    undisturbed = Case(case.search, case.dimensions, case.failures, flow=case.flow)
    assert simulate(case) == simulate(undisturbed)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_simulated_scheduler_really_overlaps_kills_and_restarts(algorithm: Algorithm) -> None:
    """Guards the test above: with four workers, finishing order differs from index order and kills lose work."""
    case = Case(
        Search(algorithm=algorithm, candidates=60, lag=8), 3, frozenset(), [9, 1, 4], workers=4, kills=frozenset({7})
    )
    finished: dict[int, tuple[Genome, float | None]] = {}
    assert _life(case, finished, 0, 7) == 7
    assert list(finished) != sorted(finished)  # dicts keep the order of arrival
    assert set(range(max(finished))) - set(finished)  # a hole that the next life has to fill
    assert simulate(case) == simulate(Case(case.search, 3, frozenset()))


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_instance_that_is_shown_a_log_goes_on_as_the_one_that_wrote_it(algorithm: Algorithm, flow: bool) -> None:
    search = Search(algorithm=algorithm, candidates=200, seed=3, lag=9)
    genomes, fitness = drive(search, 6, flow=flow)
    for index in (199, 1, 150, 75, 12):
        shown = new_search(search, 6, flow=flow)
        for genome in genomes[:index]:
            shown.replay(genome)
        for outcome in fitness[:index]:  # more than genome `index` may depend on
            shown.tell(scored(outcome))
        assert shown.ask() == genomes[index]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_outcomes_within_the_lag_are_not_asked_for_and_those_before_it_matter(algorithm: Algorithm) -> None:
    """Changing every visible outcome changes later genomes of all but random search."""
    search = Search(algorithm=algorithm, candidates=120, lag=5)
    plain, _ = drive(search, 4)
    turned, _ = drive(search, 4, sign=-1.0)
    assert (plain != turned) == (algorithm != "Random")
    assert plain[:5] == turned[:5]  # nothing is visible yet


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_pickling_changes_no_bit_in_many_dimensions(algorithm: Algorithm, flow: bool) -> None:
    """A covariance matrix of many genes shows what a last bit does, where no two outcomes are the same."""
    search = Search(algorithm=algorithm, candidates=200, seed=3, lag=8)
    plain, sent = new_search(search, 40, flow=flow), new_search(search, 40, flow=flow)
    outcomes: list[Outcome] = []
    for index in range(search.candidates):
        while plain.told < index - search.lag + 1:
            for told in (plain, sent):
                told.tell(outcomes[told.told])
        sent = pickle.loads(pickle.dumps(sent))
        genome = plain.ask()
        if index < 70:  # within a block: a log that ends there is gone on with
            sent.replay(genome)
        else:
            assert sent.ask() == genome, index
        outcomes.append(scored(-sum((value - 0.4) ** 2 for value in genome)))


@pytest.mark.parametrize("algorithm", ["CMA-ES", "SepCMA-ES", "Random"])
def test_what_was_told_is_let_go(algorithm: Algorithm) -> None:
    """After 3,000 candidates an instance is no larger than after 300: it holds its state and what was not told."""
    search = Search(algorithm=algorithm, candidates=3000, lag=16)
    sizes: dict[int, int] = {}
    asked = new_search(search, 20)
    for index in range(search.candidates):
        genome = asked.ask()
        asked.tell(scored(quantised(genome)))
        if index + 1 in (300, 3000):
            sizes[index + 1] = len(pickle.dumps(asked))
    assert sizes[3000] < 1.05 * sizes[300]


def test_the_ga_keeps_sixteen_bytes_of_a_genome_that_is_not_among_the_best() -> None:
    search = Search(candidates=1200, lag=4)
    asked = new_search(search, 400)
    sizes = []
    for index in range(search.candidates):
        asked.tell(scored(quantised(asked.ask())))
        if index + 1 in (200, 1200):
            sizes.append(len(pickle.dumps(asked)))
    assert (sizes[1] - sizes[0]) / 1000 < 40  # pickled, a genome takes 1,600 bytes


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_seed_and_stage_each_change_the_genomes(algorithm: Algorithm) -> None:
    def genomes(seed: int, stage: str) -> list[Genome]:
        return drive(Search(algorithm=algorithm, candidates=30, seed=seed), 3, stage=stage)[0]

    assert genomes(1, "ps") == genomes(1, "ps")
    assert genomes(1, "ps") != genomes(2, "ps")
    assert genomes(1, "ps") != genomes(1, "unet")


def drive(
    search: Search, dimensions: int, *, sign: float = 1.0, stage: str = STAGE, flow: bool = False
) -> tuple[list[Genome], list[float | None]]:
    """The whole search, one candidate after the other."""
    algorithm = new_search(search, dimensions, stage, flow=flow)
    genomes: list[Genome] = []
    fitness: list[float | None] = []
    for index in range(search.candidates):
        while algorithm.told < index - search.lag + 1:
            algorithm.tell(scored(fitness[algorithm.told]))
        genomes.append(algorithm.ask())
        fitness.append(sign * quantised(genomes[-1]))
    return genomes, fitness
