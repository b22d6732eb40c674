"""A steady-state genetic algorithm over DEAP's operators: tournament, simulated binary crossover, polynomial mutation.

Every child is bred from the best `population` of all outcomes visible to its index, so the elite is never lost and
no generation is waited for.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from deap import tools

from evomerge_contract.candidate import Genome
from evomerge_contract.manifest import Search
from evomerge_operator.search.algorithm import Gene, Outcomes, check_log
from evomerge_operator.search.grid import on_grid, start_genome
from evomerge_operator.search.random_search import uniform_genome
from evomerge_operator.search.randomness import seed_of, seeded_global_random

# Chosen by measurement at 120 to 1,000 candidates, 8 to 32 genes, lag 16, on smooth, ill-conditioned, multimodal and
# accuracy-like functions. A small elite suits these budgets; the figures are flat around the other values.
POPULATION = 8
TOURNAMENT = 3
CROSSOVER_ETA = 1.0  # children spread widely around their parents
MUTATION_ETA = 8.0
MUTATION_TRIES = 20


class _Standing(NamedTuple):
    """A visible outcome; sorts best first, the lower index first among equals."""

    loss: float
    candidate: int
    genome: Genome


@dataclass
class _Memory:
    """What was worked out from the first `genomes` genomes and the first `outcomes` outcomes."""

    genomes: int = 0
    outcomes: int = 0
    elite: list[_Standing] = field(default_factory=list)
    known: set[Genome] = field(default_factory=set)


class _Parent(NamedTuple):
    strength: int  # by rank alone, so that no two are equal
    genome: Genome


class GeneticAlgorithm:
    """An initial design until `population` outcomes are visible, children of the best ones from then on."""

    version = "GA/1"

    def __init__(self, search: Search, genes: Sequence[Gene], stage: str) -> None:
        self.population = search.population or POPULATION
        self._search, self._genes, self._stage = search, tuple(genes), stage
        self._low, self._high = [g.low for g in genes], [g.high for g in genes]
        self._first_child = self.population + search.lag - 1
        self._strata = self._latin_hypercube(self._first_child - 1)
        self._memory = _Memory()

    def ask(self, index: int, genomes: Sequence[Genome], fitness: Outcomes) -> Genome:
        """See SearchAlgorithm."""
        check_log(index, self._search.lag, genomes, fitness)
        if index == 0:
            return start_genome(self._genes)
        if index < self._first_child:
            return self._designed(index)
        self._catch_up(genomes, fitness)
        if len(self._memory.elite) < 2:  # failures say nothing of where to go
            return uniform_genome(self._genes, Random(self._seed(index, "uniform")))
        with seeded_global_random(self._seed(index, "child")):
            return self._child()

    def _latin_hypercube(self, samples: int) -> list[list[int]]:
        """For each gene, which of `samples` equal parts of its range each sample falls in (McKay et al. 1979).

        So few samples leave gaps in a gene's range when drawn independently.
        """
        source = Random(self._seed(0, "strata"))
        return [source.sample(range(samples), samples) for _ in self._genes]

    def _designed(self, index: int) -> Genome:
        source = Random(self._seed(index, "design"))
        return on_grid(
            (
                gene.low + (strata[index - 1] + source.random()) / len(strata) * (gene.high - gene.low)
                for gene, strata in zip(self._genes, self._strata, strict=True)
            ),
            self._genes,
        )

    def _child(self) -> Genome:
        """Breed by the global `random`; a child that is known already is mutated again."""
        parents = [_Parent(-rank, standing.genome) for rank, standing in enumerate(self._memory.elite)]
        [first] = tools.selTournament(parents, 1, TOURNAMENT, fit_attr="strength")
        others = [parent for parent in parents if parent is not first]
        [second] = tools.selTournament(others, 1, TOURNAMENT, fit_attr="strength")
        values = list(first.genome)
        tools.cxSimulatedBinaryBounded(values, list(second.genome), CROSSOVER_ETA, self._low, self._high)
        for _ in range(MUTATION_TRIES):
            tools.mutPolynomialBounded(values, MUTATION_ETA, self._low, self._high, 1 / len(values))
            child = on_grid(values, self._genes)
            if child not in self._memory.known:
                break
        return child

    def _catch_up(self, genomes: Sequence[Genome], fitness: Outcomes) -> None:
        """Take in what is new since the last ask, so that n asks cost n steps and not n squared."""
        if len(genomes) < self._memory.genomes:
            self._memory = _Memory()
        memory = self._memory
        memory.known.update(genomes[memory.genomes :])
        for index in range(memory.outcomes, len(fitness)):
            value = fitness[index]
            if value is not None:
                insort(memory.elite, _Standing(-value, index, genomes[index]))
                del memory.elite[self.population :]
        memory.genomes, memory.outcomes = len(genomes), len(fitness)

    def _seed(self, index: int, purpose: str) -> int:
        return seed_of(self._search.seed, self._stage, index, purpose)
