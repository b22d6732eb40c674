"""Random search: uniform samples, or samples around the start where genes have a spread.

The honest reference that every other algorithm has to beat.
"""

from collections.abc import Sequence
from random import Random

from evomerge_contract.candidate import Genome
from evomerge_contract.manifest import Objective, Search
from evomerge_operator.search.algorithm import Gene, SearchAlgorithm
from evomerge_operator.search.grid import on_grid, start_genome


class RandomSearch(SearchAlgorithm):
    """The start genome, then samples that depend on nothing but their index."""

    version = "Random/1"

    def __init__(self, search: Search, genes: Sequence[Gene], stage: str, objectives: Sequence[Objective]) -> None:
        super().__init__(search, genes, stage, objectives)
        self.population = search.population or 1

    def _choose(self, index: int) -> Genome:
        if index == 0:
            return start_genome(self._genes)
        return drawn_genome(self._genes, Random(self._seed(index, "uniform")))

    def _saw_genome(self, index: int, genome: Genome) -> None:
        pass

    def _saw_loss(self, index: int, loss: float) -> None:
        pass


def drawn_genome(genes: Sequence[Gene], source: Random) -> Genome:
    """A genome drawn around the start, and uniformly within bounds in the genes without a spread."""
    return on_grid((drawn_near(gene, source) for gene in genes), genes)


def drawn_near(gene: Gene, source: Random) -> float:
    """A value of a gene around its start; without a spread, anywhere in its range."""
    if gene.kind == "binary":
        differs = source.random() < (0.5 if gene.spread is None else gene.spread)
        return 1.0 - gene.start if differs else gene.start
    if gene.spread is None:
        return source.uniform(gene.low, gene.high)
    return source.gauss(gene.start, gene.spread * (gene.high - gene.low))
