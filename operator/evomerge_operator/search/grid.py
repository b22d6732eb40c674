"""Genomes lie within bounds on a grid of 1e-6, so that a recipe's text is exact."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge_contract.base import GRID_DECIMALS
from evomerge_contract.candidate import Genome
from evomerge_operator.search.algorithm import Gene

_UNITS = 10**GRID_DECIMALS


def on_grid(values: Iterable[float], genes: Sequence[Gene]) -> Genome:
    """The nearest genome to `values` (physical units, one a gene) within bounds on the grid."""
    return tuple(_snap(float(value), gene) for value, gene in zip(values, genes, strict=True))


def start_genome(genes: Sequence[Gene]) -> Genome:
    """The genome that the manifest starts from."""
    return on_grid((gene.start for gene in genes), genes)


class Packing:
    """Genomes as whole numbers of the grid above each gene's lower bound, in as few bytes as the ranges allow."""

    def __init__(self, genes: Sequence[Gene]) -> None:
        self._low = np.array([round(gene.low * _UNITS) for gene in genes], dtype=np.int64)
        widest = max(round((gene.high - gene.low) * _UNITS) for gene in genes)
        self._type = next(t for t in (np.uint16, np.uint32, np.uint64) if widest <= np.iinfo(t).max)

    def pack(self, genome: Genome) -> bytes:
        """The bytes of a genome within bounds on the grid."""
        units = np.rint(np.array(genome) * _UNITS).astype(np.int64) - self._low
        return bytes(units.astype(self._type).tobytes())

    def values(self, packed: bytes) -> NDArray[np.float64]:
        """The genes, in physical units: the very numbers that were packed."""
        units = np.frombuffer(packed, dtype=self._type).astype(np.int64) + self._low
        values: NDArray[np.float64] = units / _UNITS
        return values


def _snap(value: float, gene: Gene) -> float:
    return min(max(round(value, GRID_DECIMALS), gene.low), gene.high) + 0.0  # + 0.0 makes -0.0 a plain zero
