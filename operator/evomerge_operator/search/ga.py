"""A steady-state genetic algorithm over DEAP's operators: tournament, then simulated binary crossover and polynomial
mutation for real genes, uniform crossover and bit flips for binary ones.

Every child is bred from the best `population` of all outcomes visible to its index, so the elite is never lost and
no generation is waited for.
"""

import math
from array import array
from bisect import insort
from collections import deque
from collections.abc import Sequence
from hashlib import blake2b
from random import Random
from typing import NamedTuple

from deap import tools

from evomerge_contract.candidate import Genome
from evomerge_contract.manifest import Objective, Search
from evomerge_operator.search.algorithm import Gene, SearchAlgorithm
from evomerge_operator.search.grid import Packing, on_grid, start_genome
from evomerge_operator.search.random_search import drawn_genome, drawn_near
from evomerge_operator.search.randomness import seeded_global_random

# Chosen by measurement at 120 to 1,000 candidates, 8 to 32 genes, lag 16, on smooth, ill-conditioned, multimodal and
# accuracy-like functions. A small elite suits these budgets; the figures are flat around the other values.
POPULATION = 8
TOURNAMENT = 3
CROSSOVER_ETA = 1.0  # children spread widely around their parents
MUTATION_ETA = 8.0
MUTATION_TRIES = 20
BITS_EXCHANGED = 0.5


class _Standing(NamedTuple):
    """An outcome; sorts best first, the lower index first among equals."""

    loss: float
    candidate: int
    packed: bytes


class _Parent(NamedTuple):
    strength: int  # by rank alone, so that no two are equal
    packed: bytes


class GeneticAlgorithm(SearchAlgorithm):
    """An initial design until `population` outcomes are visible, children of the best ones from then on."""

    version = "GA/1"

    def __init__(self, search: Search, genes: Sequence[Gene], stage: str, objectives: Sequence[Objective]) -> None:
        super().__init__(search, genes, stage, objectives)
        self.population = search.population or POPULATION
        self._low, self._high = [g.low for g in genes], [g.high for g in genes]
        self._packing = Packing(genes)
        self._first_child = self.population + search.lag - 1
        self._binary = [i for i, gene in enumerate(genes) if gene.kind == "binary"]
        self._real = [i for i, gene in enumerate(genes) if gene.kind == "real"]
        self._strata = self._latin_hypercube(self._first_child - 1)
        self._elite: list[_Standing] = []
        self._known: set[bytes] = set()  # digests of all genomes
        self._genomes: deque[bytes] = deque()  # of the indices from `_seen` on
        self._losses: deque[float] = deque()  # of the indices from `_seen` on
        self._seen = 0  # outcomes that the elite was chosen from

    def _choose(self, index: int) -> Genome:
        if index == 0:
            return start_genome(self._genes)
        if index < self._first_child:
            return self._designed(index)
        self._see_until(index)
        if len(self._elite) < 2:  # failures say nothing of where to go
            return drawn_genome(self._genes, Random(self._seed(index, "uniform")))
        with seeded_global_random(self._seed(index, "child")):
            return self._child(index)

    def _saw_genome(self, index: int, genome: Genome) -> None:
        packed = self._packing.pack(genome)
        self._known.add(_digest(packed))
        self._genomes.append(packed)
        self._see_until(index)
        if index + 1 >= self._first_child:
            self._strata = []

    def _saw_loss(self, index: int, loss: float) -> None:
        self._losses.append(loss)

    def _see_until(self, index: int) -> None:
        """Let the outcomes that genome `index` may depend on into the elite."""
        while self._losses and self._seen <= index - self._search.lag:
            standing = _Standing(self._losses.popleft(), self._seen, self._genomes.popleft())
            if standing.loss < math.inf:
                insort(self._elite, standing)
                del self._elite[self.population :]
            self._seen += 1

    def _latin_hypercube(self, samples: int) -> "list[array[int]]":
        """For each real gene without a spread, which of `samples` equal parts of its range each sample falls in.

        (McKay et al. 1979.) So few samples leave gaps in a gene's range when drawn independently.
        """
        source = Random(self._seed(0, "strata"))
        return [array("H", source.sample(range(samples), samples) if _stratified(g) else []) for g in self._genes]

    def _designed(self, index: int) -> Genome:
        source = Random(self._seed(index, "design"))
        return on_grid(
            (
                gene.low + (strata[index - 1] + source.random()) / len(strata) * (gene.high - gene.low)
                if strata
                else drawn_near(gene, source)
                for gene, strata in zip(self._genes, self._strata, strict=True)
            ),
            self._genes,
        )

    def _child(self, index: int) -> Genome:
        """Breed by the global `random`; a child that is known already is mutated again."""
        parents = [_Parent(-rank, standing.packed) for rank, standing in enumerate(self._elite)]
        [first] = tools.selTournament(parents, 1, TOURNAMENT, fit_attr="strength")
        others = [parent for parent in parents if parent is not first]
        [second] = tools.selTournament(others, 1, TOURNAMENT, fit_attr="strength")
        values, partner = (self._packing.values(parent.packed).tolist() for parent in (first, second))
        real, bits = _at(self._real, values), _at(self._binary, values)
        low, high = _at(self._real, self._low), _at(self._real, self._high)
        tools.cxSimulatedBinaryBounded(real, _at(self._real, partner), CROSSOVER_ETA, low, high)
        tools.cxUniform(bits, _at(self._binary, partner), BITS_EXCHANGED)
        for _ in range(MUTATION_TRIES):
            tools.mutPolynomialBounded(real, MUTATION_ETA, low, high, 1 / max(1, len(real)))
            tools.mutFlipBit(bits, 1 / max(1, len(bits)))
            mutated = dict(zip(self._real + self._binary, real + bits, strict=True))
            child = self._repaired(on_grid((mutated[i] for i in range(len(mutated))), self._genes), index)
            if _digest(self._packing.pack(child)) not in self._known:
                break
        return child


def _stratified(gene: Gene) -> bool:
    return gene.kind == "real" and gene.spread is None


def _at(places: Sequence[int], values: Sequence[float]) -> list[float]:
    return [values[place] for place in places]


def _digest(packed: bytes) -> bytes:
    """What a genome is known by: sixteen bytes, however many genes it has."""
    return blake2b(packed, digest_size=16).digest()
