"""A search as its MergeCandidates tell it: the planner's State, kept up to date instead of made anew each time."""

from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

from evomerge_contract.candidate import Candidate, Genome
from evomerge_contract.status import CandidateSpec, CandidateStatus
from evomerge_operator import plan
from evomerge_operator.kube.candidates import finished_candidate, genome_of
from evomerge_operator.plan import BASELINES, Key, State
from evomerge_operator.prepared import Run

_DECODED = 16
"""Candidates whose recipes are compared with what their genomes decode to, when a log is read."""
Document = dict[str, Any]


@dataclass
class Open:
    """A MergeCandidate that is not finished."""

    document: Document
    """Its metadata: what a write needs."""
    status: CandidateStatus

    @property
    def ended_attempts(self) -> int:
        """How many of its Jobs have been told."""
        return self.status.attempts


@dataclass
class Search:
    """Everything known of the candidates of a prepared EvoMerge."""

    run: Run
    finished: dict[Key, Candidate] = field(default_factory=dict)
    open: dict[Key, Open] = field(default_factory=dict)
    genomes: list[Genome] = field(default_factory=list)
    fitness: list[float | None] = field(default_factory=list)
    disruptions: dict[Key, int] = field(default_factory=dict)
    _asked: dict[int, Genome] = field(default_factory=dict)

    def take(self, document: Document) -> Key:
        """Take over a MergeCandidate as it is now; the genomes are as they were asked, never computed again.

        Raises:
            ValueError: it is not of this search, or not as it was written.
        """
        spec = CandidateSpec.model_validate(document["spec"])
        status = CandidateStatus.model_validate(document.get("status") or {})
        key = Key(spec.stage, spec.index)
        if spec.stage not in (BASELINES, self.run.stage):
            raise ValueError(f"there is no stage {spec.stage}")
        if spec.genome is not None:
            self._ask(spec.index, genome_of(spec.genome))
        if status.disruptions:
            self.disruptions[key] = status.disruptions
        recipe = self.run.baselines[spec.index].recipe if spec.stage == BASELINES else None
        candidate = finished_candidate(spec, status, recipe)
        if candidate is None:
            self.open[key] = Open({"metadata": _identity(document["metadata"])}, status)
        else:
            self._finish(key, candidate)
        return key

    def state(self, running: Set[Key]) -> State:
        """What the planner decides from. Failures count as attempts; what was lost or could not be read does not."""
        attempts = {key: candidate.status.failures for key, candidate in self.open.items()}
        return State(self.finished, self.genomes, self.fitness, attempts, running)

    def problem_of(self, key: Key) -> str | None:
        """Why a candidate's line of the log cannot be gone on with: it is another version's."""
        candidate = self.finished.get(key)
        if candidate is None:
            return None
        # Decoding takes milliseconds, and decoding that has changed shows at any candidate.
        whole = key.index < _DECODED
        return plan.candidate_problem(self.run, candidate) if whole else plan.version_problem(self.run, candidate)

    def hole(self) -> str | None:
        """Why the log as a whole cannot be gone on with: candidates are missing."""
        if not self._asked:
            return None
        return f"lacks candidate {len(self.genomes)}, though later ones are there; somebody has deleted it"

    @property
    def complete(self) -> bool:
        """Whether every candidate and baseline is finished."""
        return len(self.finished) == self.run.candidates + len(self.run.baselines)

    @property
    def done(self) -> int:
        """Finished candidates, baselines aside."""
        return sum(key.stage != BASELINES for key in self.finished)

    def best(self) -> float | None:
        """The best fitness so far."""
        return max((f for f in self._fitnesses(self.run.stage)), default=None)

    def best_source(self) -> float | None:
        """The best fitness of a source alone."""
        sources = {i for i, b in enumerate(self.run.baselines) if b.role == "source"}
        found = [c for k, c in self.finished.items() if k.stage == BASELINES and k.index in sources]
        return max((c.fitness for c in found if c.fitness is not None), default=None)

    def _fitnesses(self, stage: str) -> list[float]:
        return [c.fitness for k, c in self.finished.items() if k.stage == stage and c.fitness is not None]

    def _ask(self, index: int, genome: Genome) -> None:
        if index < len(self.genomes):
            return
        self._asked[index] = genome
        while (following := self._asked.pop(len(self.genomes), None)) is not None:
            self.genomes.append(following)

    def _finish(self, key: Key, candidate: Candidate) -> None:
        self.open.pop(key, None)
        self.finished[key] = candidate
        while (following := self.finished.get(Key(self.run.stage, len(self.fitness)))) is not None:
            self.fitness.append(following.fitness)


def _identity(metadata: Document) -> Document:
    return {key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion")}
