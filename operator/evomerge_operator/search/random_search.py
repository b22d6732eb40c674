"""Random search: uniform samples. The honest reference that every other algorithm has to beat."""

from collections.abc import Sequence
from random import Random

from evomerge_contract.candidate import Genome
from evomerge_contract.manifest import Search
from evomerge_operator.search.algorithm import Gene, Outcomes, check_log
from evomerge_operator.search.grid import on_grid, start_genome
from evomerge_operator.search.randomness import seed_of


class RandomSearch:
    """The start genome, then samples that depend on nothing but their index."""

    version = "Random/1"

    def __init__(self, search: Search, genes: Sequence[Gene], stage: str) -> None:
        self.population = search.population or 1
        self._search, self._genes, self._stage = search, tuple(genes), stage

    def ask(self, index: int, genomes: Sequence[Genome], fitness: Outcomes) -> Genome:
        """See SearchAlgorithm."""
        check_log(index, self._search.lag, genomes, fitness)
        if index == 0:
            return start_genome(self._genes)
        return uniform_genome(self._genes, Random(seed_of(self._search.seed, self._stage, index, "uniform")))


def uniform_genome(genes: Sequence[Gene], source: Random) -> Genome:
    """A genome drawn uniformly within bounds."""
    return on_grid((source.uniform(gene.low, gene.high) for gene in genes), genes)
