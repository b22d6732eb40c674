"""The search: which genome to try next, from the genomes and outcomes so far. Pure: no I/O, no clock, no threads."""

from collections.abc import Callable, Sequence
from functools import partial

from evomerge_contract.manifest import Algorithm, Objective, Search
from evomerge_contract.methods import any_of
from evomerge_operator.search.algorithm import Gene, Outcome, SearchAlgorithm, SearchError
from evomerge_operator.search.cma_es import CmaEs
from evomerge_operator.search.ga import GeneticAlgorithm
from evomerge_operator.search.random_search import RandomSearch

__all__ = ["BINARY", "Gene", "Outcome", "SearchAlgorithm", "SearchError", "make_search"]

ALGORITHMS: dict[Algorithm, Callable[[Search, Sequence[Gene], str, Sequence[Objective]], SearchAlgorithm]] = {
    "GA": GeneticAlgorithm,
    "CMA-ES": partial(CmaEs, separable=False),
    "SepCMA-ES": partial(CmaEs, separable=True),
    "Random": RandomSearch,
}


BINARY: tuple[Algorithm, ...] = ("GA", "Random")
"""Those that take binary genes. For the others a space relaxes them: a real gene that is positive means 1."""


def make_search(
    search: Search,
    genes: Sequence[Gene],
    stage: str,
    objectives: Sequence[Objective],
    ones: tuple[int, int] | None = None,
) -> SearchAlgorithm:
    """The algorithm that a stage's search names, ready to be asked.

    `ones` bounds how many of the binary genes are 1 in a genome.

    Raises:
        SearchError: there is nothing to search, or the algorithm does not suit the genes or their number.
    """
    if not genes:
        raise SearchError("search: there is no gene to search; give at least one parameter min and max")
    if empty := [gene.name for gene in genes if not gene.low < gene.high]:
        raise SearchError(f"search: min must be below max, which it is not for {', '.join(empty)}")
    if search.algorithm not in BINARY and any(gene.kind == "binary" for gene in genes):
        raise SearchError(f"search.algorithm: {search.algorithm} takes no binary genes; choose {any_of(BINARY)}")
    made = ALGORITHMS[search.algorithm](search, genes, stage, objectives)
    made.ones = ones
    return made
