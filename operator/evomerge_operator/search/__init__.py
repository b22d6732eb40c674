"""The search: which genome to try next, from the genomes and outcomes so far. Pure: no I/O, no clock, no threads."""

from collections.abc import Callable, Sequence
from functools import partial

from evomerge_contract.manifest import Algorithm, Objective, Search
from evomerge_operator.search.algorithm import Gene, Outcome, SearchAlgorithm, SearchError
from evomerge_operator.search.cma_es import CmaEs
from evomerge_operator.search.ga import GeneticAlgorithm
from evomerge_operator.search.random_search import RandomSearch

__all__ = ["Gene", "Outcome", "SearchAlgorithm", "SearchError", "make_search"]

ALGORITHMS: dict[Algorithm, Callable[[Search, Sequence[Gene], str, Sequence[Objective]], SearchAlgorithm]] = {
    "GA": GeneticAlgorithm,
    "CMA-ES": partial(CmaEs, separable=False),
    "SepCMA-ES": partial(CmaEs, separable=True),
    "Random": RandomSearch,
}


def make_search(search: Search, genes: Sequence[Gene], stage: str, objectives: Sequence[Objective]) -> SearchAlgorithm:
    """The algorithm that a stage's search names, ready to be asked.

    Raises:
        SearchError: there is nothing to search, or the algorithm does not suit the number of genes.
    """
    if not genes:
        raise SearchError("search: there is no gene to search; give at least one parameter min and max")
    if empty := [gene.name for gene in genes if not gene.low < gene.high]:
        raise SearchError(f"search: min must be below max, which it is not for {', '.join(empty)}")
    return ALGORITHMS[search.algorithm](search, genes, stage, objectives)
