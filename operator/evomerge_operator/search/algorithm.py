"""What a search algorithm is: a pure function from the outcomes so far to the next genome, by index."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from evomerge_contract.candidate import GeneLabel, Genome

Outcomes = Sequence[float | None]
"""Fitness by index, higher is better; None is a candidate that failed and ranks below every one that did not."""


class SearchError(ValueError):
    """The search cannot be set up or asked as it is; the message says where, why and what to do."""


@dataclass(frozen=True)
class Gene:
    """One searched number: a parameter of a group of tensors, for one model or (None) the same for all.

    In physical units; `low` and `high` lie on the grid and belong to the range. `kind` says which numbers of the range
    are meant: of a real gene, all on the grid.
    """

    parameter: str
    group: str
    model: str | None
    low: float
    high: float
    start: float
    kind: Literal["real"] = "real"

    @property
    def label(self) -> GeneLabel:
        """What the gene is of, as reports hold it."""
        return GeneLabel(parameter=self.parameter, group=self.group, model=self.model)

    @property
    def name(self) -> str:
        """The gene's name for people: parameter/group/model, or parameter/group."""
        return "/".join(filter(None, (self.parameter, self.group, self.model)))


class SearchAlgorithm(Protocol):
    """Genome k depends only on the search's spec, its stage, the genomes before k and the outcomes up to k - lag."""

    version: str
    """Stored with every candidate: it changes whenever the same outcomes would lead to other genomes."""

    population: int
    """The generation of index k is k // population."""

    def ask(self, index: int, genomes: Sequence[Genome], fitness: Outcomes) -> Genome:
        """The genome of `index`, on the grid and within bounds.

        Args:
            index: 0, 1, …; index 0 is the start genome, or a sample around it.
            genomes: those of every index below `index`.
            fitness: the outcomes of every index up to `index - lag`.

        What earlier asks worked out is kept, as a speed-up only: a new instance gives the same genome. Genomes and
        outcomes once shown to an instance must not change.

        Raises:
            SearchError: genomes or outcomes are missing, or there are too many.
        """
        ...


def check_log(index: int, lag: int, genomes: Sequence[Genome], fitness: Outcomes) -> None:
    """Refuse a log with a hole, and outcomes that genome `index` must not depend on.

    Raises:
        SearchError: not exactly `index` genomes, or not exactly the outcomes up to `index - lag`.
    """
    outcomes = max(0, index - lag + 1)
    if len(genomes) != index or len(fitness) != outcomes:
        raise SearchError(
            f"candidate {index} is chosen from {index} genomes and {outcomes} outcomes (lag {lag}), "
            f"not from {len(genomes)} and {len(fitness)}"
        )
