"""What is known of the candidates of one sequence: a stage's, or the baselines'."""

from dataclasses import dataclass, field
from typing import NamedTuple

from evomerge_contract.candidate import Candidate, Genome
from evomerge_operator.search import Outcome


class Result(NamedTuple):
    """What a finished candidate came to, without all that a person wants to know of it."""

    outcome: Outcome
    recipe_digest: str


@dataclass
class Progress:
    """Indices 0, 1, … as far as they were asked for, and what became of them.

    Genomes are kept of candidates that are not finished, and of no others: a log of thousands of genes would fill the
    memory.
    """

    finished: dict[int, Candidate] = field(default_factory=dict)
    """Without their genomes."""
    genomes: dict[int, Genome] = field(default_factory=dict)
    """Of candidates that were asked for and are not finished."""
    failures: dict[int, int] = field(default_factory=dict)
    """Attempts that failed, of candidates that are not finished."""
    asked: int = 0
    """Genomes are known of the indices below."""
    leading: int = 0
    """All indices below are finished."""
    leading_failures: int = 0
    """How many of those failed."""
    untold: list[tuple[int, Outcome]] = field(default_factory=list)
    """Outcomes that the search has not been told, in the order in which they came."""

    def ask(self, index: int, genome: Genome) -> None:
        """Take the genome of the next index; one that was asked for before is the same."""
        self.genomes[index] = genome
        self.asked = max(self.asked, index + 1)

    def finish(self, candidate: Candidate, *, told: bool = False) -> None:
        """Take a finished candidate; `told`: the search knows its outcome already."""
        index = candidate.index
        self.genomes.pop(index, None)
        self.failures.pop(index, None)
        self.finished[index] = candidate.model_copy(update={"genome": None})
        self.asked = max(self.asked, index + 1)
        if not told:
            self.untold.append((index, candidate.told))
        while (following := self.finished.get(self.leading)) is not None:
            self.leading += 1
            self.leading_failures += following.outcome == "Failed"

    def best(self) -> float | None:
        """The best fitness so far."""
        return max((c.fitness for c in self.finished.values() if c.fitness is not None), default=None)

    @property
    def results(self) -> dict[int, Result]:
        """What finalists are chosen by."""
        return {index: Result(c.told, c.recipe_digest) for index, c in self.finished.items()}

    @property
    def failed(self) -> list[Candidate]:
        """Those that failed, by index."""
        return [c for _, c in sorted(self.finished.items()) if c.outcome == "Failed"]
