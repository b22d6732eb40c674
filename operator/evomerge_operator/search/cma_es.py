"""CMA-ES and separable CMA-ES over `cmaes`, on islands, so that no index waits for a generation to end.

Block b of `population` indices belongs to island b mod I with I = 1 + ceil(lag / population): when its turn comes,
the outcomes of its block before are all visible. An island is told its own samples and nothing else.
(Hansen, The CMA Evolution Strategy: A Tutorial, arXiv 1604.00772; Ros and Hansen 2008 for the separable one.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cmaes
import numpy as np
from numpy.typing import NDArray

from evomerge_contract.candidate import Genome
from evomerge_contract.manifest import Search
from evomerge_operator.search.algorithm import Gene, Outcomes, SearchError, check_log
from evomerge_operator.search.grid import on_grid, start_genome
from evomerge_operator.search.randomness import seed_of

FULL_DIMENSIONS = 512
"""A full covariance matrix costs n² numbers and n³ steps an update: above this, separable CMA-ES."""

SIGMA = 1 / 6  # of a gene's range (arXiv 2403.13187)
RESAMPLINGS = 3  # then clipped: many more keep the samples away from optima on a bound

_Vector = NDArray[np.float64]


@dataclass
class _Island:
    optimizer: Any
    blocks_told: int = 0


class CmaEs:
    """Genes are scaled to [0, 1]; the mean starts at the start genome."""

    def __init__(self, search: Search, genes: Sequence[Gene], stage: str, *, separable: bool) -> None:
        self.version = "SepCMA-ES/1" if separable else "CMA-ES/1"
        self.population = search.population or usual_population(len(genes))
        _check_size(len(genes), self.population, separable=separable)
        self._search, self._genes, self._stage = search, tuple(genes), stage
        # In one dimension the two are one algorithm, and the library's separable one asks for more.
        self._optimizer = cmaes.SepCMA if separable and len(genes) > 1 else cmaes.CMA
        self._low = np.array([g.low for g in genes])
        self._width = np.array([g.high for g in genes]) - self._low
        self._islands: dict[int, _Island] = {}

    @property
    def islands(self) -> int:
        """How many searches run side by side."""
        return 1 + math.ceil(self._search.lag / self.population)

    def ask(self, index: int, genomes: Sequence[Genome], fitness: Outcomes) -> Genome:
        """See SearchAlgorithm."""
        check_log(index, self._search.lag, genomes, fitness)
        blocks_before, number = divmod(index // self.population, self.islands)
        island = self._islands.get(number)
        if island is None or island.blocks_told > blocks_before:
            island = self._islands[number] = _Island(self._start(self._scaled([start_genome(self._genes)])[0]))
        while island.blocks_told < blocks_before:
            first = (island.blocks_told * self.islands + number) * self.population
            self._tell(island, first, genomes, fitness)
        island.optimizer.reseed_rng(self._seed(index, "sample"))
        return on_grid(self._low + island.optimizer.ask() * self._width, self._genes)

    def _tell(self, island: _Island, first: int, genomes: Sequence[Genome], fitness: Outcomes) -> None:
        """Tell the block that begins at index `first`, by ranks: failed ones last, the lower index first.

        A block whose outcomes are all the same says nothing of where to go (a plateau, or an end as fine as the
        metric's steps), so the island starts anew, anywhere, as it does once it has converged.
        """
        block = range(first, first + self.population)
        ranked = sorted(block, key=lambda k: (_loss(fitness[k]), k))
        samples = self._scaled([genomes[k] for k in ranked])
        island.optimizer.tell([(sample, float(rank)) for rank, sample in enumerate(samples)])
        flat = len({fitness[k] for k in block}) == 1
        if flat or island.optimizer.should_stop():
            anywhere = np.random.RandomState(self._seed(first, "restart")).uniform(size=len(self._genes))
            island.optimizer = self._start(anywhere)
        island.blocks_told += 1

    def _start(self, mean: _Vector) -> Any:
        bounds = np.tile([0.0, 1.0], (len(self._genes), 1))
        return self._optimizer(
            mean=mean,
            sigma=SIGMA,
            bounds=bounds,
            n_max_resampling=RESAMPLINGS,
            seed=0,  # every ask seeds anew; None would draw on the system's entropy
            population_size=self.population,
        )

    def _scaled(self, genomes: Sequence[Genome]) -> _Vector:
        scaled: _Vector = (np.array(genomes) - self._low) / self._width
        return scaled

    def _seed(self, index: int, purpose: str) -> int:
        return seed_of(self._search.seed, self._stage, index, purpose) % 2**32


def usual_population(dimensions: int) -> int:
    """4 + floor(3 ln n) (arXiv 1604.00772, equation 48)."""
    return 4 + math.floor(3 * math.log(dimensions))


def _loss(fitness: float | None) -> float:
    return math.inf if fitness is None else -fitness


def _check_size(dimensions: int, population: int, *, separable: bool) -> None:
    if not separable and dimensions > FULL_DIMENSIONS:
        raise SearchError(
            f"search.algorithm: CMA-ES in {dimensions} dimensions is refused (at most {FULL_DIMENSIONS}); "
            "choose SepCMA-ES, or fewer groups"
        )
    if separable and dimensions > 1 and separable_learning_rate(dimensions, population) >= 1:
        raise SearchError(
            f"search.population: {population} is too large for SepCMA-ES in {dimensions} dimensions "
            "(it would forget all it learnt with every generation); choose a smaller one, or CMA-ES"
        )


def separable_learning_rate(dimensions: int, population: int) -> float:
    """How much of the variances one generation replaces, c1 + cmu.

    Ros and Hansen 2008 take the full covariance's rate of Hansen and Ostermeier 2001 times (n + 2) / 3, which passes
    1 for populations of more than about seven times the dimensions: variances would then turn negative.
    """
    n, mu = dimensions, population // 2
    weights = np.log(mu + 1) - np.log(np.arange(1, mu + 1))
    mu_eff = float(weights.sum() ** 2 / (weights**2).sum())
    cmu = 2 / mu_eff / (n + math.sqrt(2)) ** 2 + (1 - 1 / mu_eff) * min(1, (2 * mu_eff - 1) / ((n + 2) ** 2 + mu_eff))
    return 2 / ((n + 1.3) ** 2 + mu_eff) + (n + 2) / 3 * cmu
