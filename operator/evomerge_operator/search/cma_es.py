"""CMA-ES and separable CMA-ES over `cmaes`, on islands, so that no index waits for a generation to end.

Block b of `population` indices belongs to island b mod I with I = 1 + ceil(lag / population): when its turn comes,
the outcomes of its block before are all visible. An island is told its own samples and nothing else. Genes are real: a
space with binary ones relaxes them.
(Hansen, The CMA Evolution Strategy: A Tutorial, arXiv 1604.00772; Ros and Hansen 2008 for the separable one.)
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import cmaes
import numpy as np
from numpy.typing import NDArray

from evomerge_contract.candidate import Genome
from evomerge_contract.manifest import Objective, Search
from evomerge_operator.search.algorithm import Gene, SearchAlgorithm, SearchError
from evomerge_operator.search.grid import Packing, on_grid, start_genome

FULL_DIMENSIONS = 512
"""A full covariance matrix costs n² numbers and n³ steps an update: above this, separable CMA-ES."""

SIGMA = 1 / 6  # of a gene's range (arXiv 2403.13187), unless the gene has a spread of its own
RESAMPLINGS = 3  # then clipped: many more keep the samples away from optima on a bound

_Vector = NDArray[np.float64]


class CmaEs(SearchAlgorithm):
    """Genes are scaled so that SIGMA is the spread of each: to [0, 1] those without one of their own. The mean starts
    at the start genome."""

    def __init__(
        self,
        search: Search,
        genes: Sequence[Gene],
        stage: str,
        objectives: Sequence[Objective],
        *,
        separable: bool,
    ) -> None:
        super().__init__(search, genes, stage, objectives)
        self.version = "SepCMA-ES/1" if separable else "CMA-ES/1"
        self.population = search.population or usual_population(len(genes))
        _check_size(len(genes), self.population, separable=separable)
        # In one dimension the two are one algorithm, and the library's separable one asks for more.
        self._optimizer = cmaes.SepCMA if separable and len(genes) > 1 else cmaes.CMA
        self._packing = Packing(genes)
        self._low = np.array([g.low for g in genes])
        spreads = np.array([SIGMA if g.spread is None else g.spread for g in genes]) / SIGMA
        self._width = (np.array([g.high for g in genes]) - self._low) * spreads
        self._bounds = np.column_stack((np.zeros(len(genes)), 1 / spreads))
        self._stays = any(gene.spread is not None for gene in genes)
        self._islands: dict[int, Any] = {}  # the library's optimizers, by the island's number
        self._genomes: deque[bytes] = deque()  # of the first block that is not told, and those after it
        self._losses: list[float] = []  # of that first block

    @property
    def islands(self) -> int:
        """How many searches run side by side."""
        return 1 + math.ceil(self._search.lag / self.population)

    def __getstate__(self) -> dict[str, Any]:
        # The library's own state keeps one triangle of the covariance matrix, which is symmetric but for the last bits:
        # an optimizer that has been pickled so would go on otherwise.
        kept = {number: {k: v for k, v in vars(o).items() if k != "_rng"} for number, o in self._islands.items()}
        return vars(self) | {"_islands": kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._islands = {number: self._restored(kept) for number, kept in state["_islands"].items()}

    def _restored(self, kept: dict[str, Any]) -> Any:
        optimizer = self._optimizer.__new__(self._optimizer)
        vars(optimizer).update(kept, _rng=np.random.RandomState(0))  # every ask seeds anew
        return optimizer

    def _choose(self, index: int) -> Genome:
        island = self._island(index)
        island.reseed_rng(self._seed(index, "sample") % 2**32)
        return on_grid(self._low + island.ask() * self._width, self._genes)

    def _saw_genome(self, index: int, genome: Genome) -> None:
        self._genomes.append(self._packing.pack(genome))

    def _saw_loss(self, index: int, loss: float) -> None:
        """Tell a block once its last outcome is known: no genome of its island is asked for in between."""
        self._losses.append(loss)
        if len(self._losses) == self.population:
            self._tell(index + 1 - self.population)
            self._losses.clear()

    def _tell(self, first: int) -> None:
        """Tell the block that begins at index `first`, by ranks: failed ones last, the lower index first.

        A block whose outcomes are all the same says nothing of where to go (a plateau, or an end as fine as the
        metric's steps), so the island starts anew, anywhere, as it does once it has converged. Where genes have a
        spread, it starts anew from the mean that it had before this block, with the first spread: most genomes of such
        a space are worth nothing, and anywhere would be among them.
        """
        island = self._island(first)
        mean = np.clip(island.mean, *self._bounds.T)
        samples = [self._scaled(self._packing.values(self._genomes.popleft())) for _ in range(self.population)]
        order = sorted(range(self.population), key=lambda k: (self._losses[k], k))
        island.tell([(samples[k], float(rank)) for rank, k in enumerate(order)])
        if len(set(self._losses)) == 1 or island.should_stop():
            self._islands[self._number(first)] = self._start(mean if self._stays else self._anywhere(first))

    def _anywhere(self, first: int) -> _Vector:
        return np.random.RandomState(self._seed(first, "restart") % 2**32).uniform(size=len(self._genes))

    def _island(self, index: int) -> Any:
        number = self._number(index)
        if number not in self._islands:
            self._islands[number] = self._start(self._scaled(np.array(start_genome(self._genes))))
        return self._islands[number]

    def _number(self, index: int) -> int:
        return index // self.population % self.islands

    def _start(self, mean: _Vector) -> Any:
        return self._optimizer(
            mean=mean,
            sigma=SIGMA,
            bounds=self._bounds,
            n_max_resampling=RESAMPLINGS,
            seed=0,  # every ask seeds anew; None would draw on the system's entropy
            population_size=self.population,
        )

    def _scaled(self, genome: _Vector) -> _Vector:
        scaled: _Vector = (genome - self._low) / self._width
        return scaled


def usual_population(dimensions: int) -> int:
    """4 + floor(3 ln n) (arXiv 1604.00772, equation 48)."""
    return 4 + math.floor(3 * math.log(dimensions))


def _check_size(dimensions: int, population: int, *, separable: bool) -> None:
    if not separable and dimensions > FULL_DIMENSIONS:
        raise SearchError(
            f"search.algorithm: CMA-ES in {dimensions} dimensions is refused (at most {FULL_DIMENSIONS}); "
            "choose SepCMA-ES, or a space of fewer genes"
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
