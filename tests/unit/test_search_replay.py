"""Genome k depends on outcomes by index alone: no schedule, number of workers or kill changes any genome."""

import heapq
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge_contract.candidate import Genome
from evomerge_contract.manifest import Algorithm, Search
from evomerge_operator.search import Gene, make_search

ALGORITHMS: tuple[Algorithm, ...] = ("GA", "CMA-ES", "SepCMA-ES", "Random")
STAGE = "ps"
T = TypeVar("T")


class Counted(list[T]):
    """A list that counts how many of its entries are read."""

    reads = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.reads += len(found) if isinstance(key, slice) else 1
        return found


def genes(count: int) -> list[Gene]:
    return [Gene("weight", str(i), None, low=-0.5, high=1.0 + i, start=0.25) for i in range(count)]


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
    algorithm = make_search(case.search, genes(case.dimensions), STAGE)
    genomes: list[Genome] = []
    running: list[tuple[int, int]] = []
    while True:
        while len(running) < case.workers and len(genomes) < case.search.candidates:
            index = len(genomes)
            if index in finished:
                genomes.append(finished[index][0])
                continue
            visible = range(max(0, index - case.search.lag + 1))
            if not all(k in finished for k in visible):
                break
            genomes.append(algorithm.ask(index, genomes, [finished[k][1] for k in visible]))
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
    )


@settings(max_examples=150, deadline=None)
@given(cases())
def test_any_durations_workers_and_kills_give_the_same_genomes(case: Case) -> None:
    undisturbed = Case(case.search, case.dimensions, case.failures)
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


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_new_instance_asked_at_any_index_agrees_with_one_asked_all_along(algorithm: Algorithm) -> None:
    """The memo is a speed-up only, and an instance that is asked for an earlier index again starts over."""
    search = Search(algorithm=algorithm, candidates=200, seed=3, lag=9)
    genomes, fitness = drive(search, 6)
    reused = make_search(search, genes(6), STAGE)
    for index in (199, 0, 150, 151, 75, 12, 198):
        visible = max(0, index - search.lag + 1)
        fresh = make_search(search, genes(6), STAGE)
        assert fresh.ask(index, genomes[:index], fitness[:visible]) == genomes[index]
        assert reused.ask(index, genomes[:index], fitness[:visible]) == genomes[index]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_outcomes_within_the_lag_are_not_asked_for_and_those_before_it_matter(algorithm: Algorithm) -> None:
    """Changing every visible outcome changes later genomes of all but random search."""
    search = Search(algorithm=algorithm, candidates=120, lag=5)
    plain, _ = drive(search, 4)
    turned, _ = drive(search, 4, sign=-1.0)
    assert (plain != turned) == (algorithm != "Random")
    assert plain[:5] == turned[:5]  # nothing is visible yet


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_cost_of_asking_grows_with_the_log_and_not_with_its_square(algorithm: Algorithm) -> None:
    """Counts the entries of the log that asks read: at most a few for each candidate."""
    search = Search(algorithm=algorithm, candidates=1500, lag=16)
    genomes, fitness = Counted[Genome](), Counted[float | None]()
    asked = make_search(search, genes(3), STAGE)
    outcomes: list[float | None] = []
    for index in range(search.candidates):
        fitness.extend(outcomes[len(fitness) : max(0, index - search.lag + 1)])
        genome = asked.ask(index, genomes, fitness)
        genomes.append(genome)
        outcomes.append(quantised(genome))
    assert genomes.reads + fitness.reads <= 4 * search.candidates


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_seed_and_stage_each_change_the_genomes(algorithm: Algorithm) -> None:
    def genomes(seed: int, stage: str) -> list[Genome]:
        return drive(Search(algorithm=algorithm, candidates=30, seed=seed), 3, stage=stage)[0]

    assert genomes(1, "ps") == genomes(1, "ps")
    assert genomes(1, "ps") != genomes(2, "ps")
    assert genomes(1, "ps") != genomes(1, "unet")


def drive(
    search: Search, dimensions: int, *, sign: float = 1.0, stage: str = STAGE
) -> tuple[list[Genome], list[float | None]]:
    """The whole search, one candidate after the other."""
    algorithm = make_search(search, genes(dimensions), stage)
    genomes: list[Genome] = []
    fitness: list[float | None] = []
    for index in range(search.candidates):
        genomes.append(algorithm.ask(index, genomes, fitness[: max(0, index - search.lag + 1)]))
        fitness.append(sign * quantised(genomes[-1]))
    return genomes, fitness
