"""Genomes lie within bounds on a grid of 1e-6, so that a recipe's text is exact."""

from collections.abc import Iterable, Sequence

from evomerge_contract.base import GRID_DECIMALS
from evomerge_contract.candidate import Genome
from evomerge_operator.search.algorithm import Gene


def on_grid(values: Iterable[float], genes: Sequence[Gene]) -> Genome:
    """The nearest genome to `values` (physical units, one a gene) within bounds on the grid."""
    return tuple(_snap(float(value), gene) for value, gene in zip(values, genes, strict=True))


def start_genome(genes: Sequence[Gene]) -> Genome:
    """The genome that the manifest starts from."""
    return on_grid((gene.start for gene in genes), genes)


def _snap(value: float, gene: Gene) -> float:
    return min(max(round(value, GRID_DECIMALS), gene.low), gene.high) + 0.0  # + 0.0 makes -0.0 a plain zero
