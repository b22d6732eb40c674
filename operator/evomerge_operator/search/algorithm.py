"""What a search algorithm is: a pure function from the outcomes so far to the next genome, by index.

An algorithm streams: it is asked for one genome after the other, or shown those of a log, and told one outcome after
the other. It keeps its state and what was not yet told, and lets go of the rest.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from evomerge_contract.candidate import GeneLabel, Genome
from evomerge_contract.manifest import Objective, Search
from evomerge_contract.report import fitness_of
from evomerge_operator.search.randomness import seed_of

Outcome = Mapping[str, float] | None
"""The scores of a candidate by objective, in the metrics' own directions; None: it failed."""


class SearchError(ValueError):
    """The search cannot be set up or asked as it is; the message says where, why and what to do."""


@dataclass(frozen=True)
class Gene:
    """One searched number: a parameter of a group of tensors, for one model or (None) the same for all.

    In physical units; `low` and `high` lie on the grid and belong to the range. `kind` says which numbers of the range
    are meant: of a real gene all on the grid, of a binary gene 0 and 1.

    `spread` is for spaces where few genomes are worth a look: the first candidates then lie around `start`. It is the
    probability that a binary gene differs from it, and of a real gene the standard deviation as a share of the range.
    Without it the first candidates lie anywhere in the range.
    """

    parameter: str
    group: str
    model: str | None
    low: float
    high: float
    start: float
    kind: Literal["real", "binary"] = "real"
    spread: float | None = None

    @property
    def label(self) -> GeneLabel:
        """What the gene is of, as reports hold it."""
        return GeneLabel(parameter=self.parameter, group=self.group, model=self.model)

    @property
    def name(self) -> str:
        """The gene's name for people: parameter/group/model, or parameter/group."""
        return "/".join(filter(None, (self.parameter, self.group, self.model)))


class SearchAlgorithm(ABC):
    """Genome k depends only on the search's settings, its stage, the genomes before k and the outcomes up to k - lag.

    An instance can be pickled at any time, and goes on in another process.
    """

    version: str
    """Stored with every candidate: it changes whenever the same outcomes would lead to other genomes."""

    population: int
    """The generation of index k is k // population."""

    ones: tuple[int, int] | None = None
    """The fewest and the most binary genes that may be 1 in a genome; None: any number."""

    def __init__(self, search: Search, genes: Sequence[Gene], stage: str, objectives: Sequence[Objective]) -> None:
        self.asked = 0
        """How many genomes there are: of the indices below."""
        self.told = 0
        """How many outcomes there are: of the indices below."""
        self._search, self._genes, self._stage, self._objectives = search, tuple(genes), stage, list(objectives)

    def ask(self) -> Genome:
        """The genome of index `asked`, on the grid and within bounds; index 0 is the start, or a sample around it.

        Raises:
            SearchError: an outcome that it depends on has not been told.
        """
        needed = self.asked - self._search.lag + 1
        if self.told < needed:
            raise SearchError(
                f"candidate {self.asked} is chosen from {needed} outcomes (lag {self._search.lag}), and {self.told} "
                "have been told"
            )
        genome = self._repaired(self._choose(self.asked), self.asked)
        self.replay(genome)
        return genome

    def replay(self, genome: Genome) -> None:
        """Take the genome of index `asked` as it was chosen before; it is not computed again.

        Raises:
            SearchError: it has another number of genes than the space.
        """
        if len(genome) != len(self._genes):
            raise SearchError(f"candidate {self.asked} has {len(genome)} genes, the space {len(self._genes)}")
        self._saw_genome(self.asked, genome)
        self.asked += 1

    def tell(self, outcome: Outcome) -> None:
        """Take the outcome of index `told`.

        Raises:
            SearchError: its genome is not known.
        """
        if self.told >= self.asked:
            raise SearchError(f"candidate {self.told} has an outcome and no genome")
        self._saw_loss(self.told, self._loss(outcome))
        self.told += 1

    def ranked(self, outcomes: Mapping[int, Outcome]) -> list[int]:
        """The indices of those that succeeded, the best first; the lower index first among equals."""
        losses = {index: self._loss(outcome) for index, outcome in outcomes.items() if outcome is not None}
        return sorted(losses, key=lambda index: (losses[index], index))

    @abstractmethod
    def _choose(self, index: int) -> Genome:
        """The genome of `index`, the next one."""

    @abstractmethod
    def _saw_genome(self, index: int, genome: Genome) -> None:
        """Take the genome of the next index."""

    @abstractmethod
    def _saw_loss(self, index: int, loss: float) -> None:
        """Take the loss of the next index that has none yet; infinite where the candidate failed."""

    def _repaired(self, genome: Genome, index: int) -> Genome:
        """The genome with as many ones as there may be: binary genes that the seed of `index` draws are turned."""
        if self.ones is None:
            return genome
        fewest, most = self.ones
        binary = [i for i, gene in enumerate(self._genes) if gene.kind == "binary"]
        ones = [i for i in binary if genome[i]]
        source, turned = Random(self._seed(index, "repair")), set[int]()
        if len(ones) > most:
            turned.update(source.sample(ones, len(ones) - most))
        elif len(ones) < fewest:
            turned.update(source.sample([i for i in binary if not genome[i]], fewest - len(ones)))
        return tuple(1.0 - value if i in turned else value for i, value in enumerate(genome))

    def _loss(self, outcome: Outcome) -> float:
        """Lower is better, the weighted mean over the objectives; a failure ranks below all that did not fail."""
        return math.inf if outcome is None else -fitness_of(self._objectives, dict(outcome))

    def _seed(self, index: int, purpose: str) -> int:
        return seed_of(self._search.seed, self._stage, index, purpose)
