"""What proposes the candidates of a stage: its space and its search, and all that their tasks share.

A proposer is the large part of a stage. It can be pickled: beside a cluster's event loop it lives in helper processes,
on one machine in the process that plans.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from evomerge_contract.base import GRID, GRID_DECIMALS
from evomerge_contract.candidate import Candidate, Genome
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import PrepareResult
from evomerge_contract.task import EvaluateTask
from evomerge_operator.errors import InputError
from evomerge_operator.plan.run import BASELINES, Common, Key, Run, StageRun, data_digests, dtype_of, sources_of
from evomerge_operator.search import Outcome, SearchError, make_search
from evomerge_operator.spaces import make_space

_DECODED = 16
"""Candidates whose recipes are compared with what their genomes decode to, when a log is read: decoding takes
milliseconds, and decoding that has changed shows at any candidate."""


class Start(NamedTuple):
    """An action: carry out this task for this candidate."""

    key: Key
    task: EvaluateTask
    genome: Genome | None


class Proposer:
    """The candidates of one stage, and the baselines."""

    def __init__(self, common: Common, number: int, prepared: PrepareResult) -> None:
        """The stage `number` of the manifest, over its models as they were `prepared`.

        Raises:
            InputError: the space does not fit the models, or the search the space.
        """
        self.manifest, self.report_dir, self.baselines, self.winners = common
        self.prepared = prepared
        spec = self.manifest.spec
        self.stage = spec.stages[number]
        self.pool = spec.pool(number)
        self.worker = spec.worker_of(self.stage)
        field = f"spec.stages[{number}].{self.stage.space.blamed_field}"
        try:
            self.space = make_space(self.stage, self.pool, spec, prepared.layout, dtype_of(prepared))
            # A recipe in which every gene has a value of its own needs the most filters.
            spread = enumerate(self.space.genes)
            self.space.decode(tuple(round(gene.low + k * GRID, GRID_DECIMALS) for k, gene in spread))
            field = f"spec.stages[{number}].search"
            self.search = make_search(
                self.stage.search, self.space.genes, self.stage.name, spec.evaluation.objectives, self.space.ones
            )
        except ValueError as error:
            raise InputError.at(self.manifest.metadata.name, field, str(error)) from error
        self._outcomes: dict[int, Outcome] = {}  # of indices after one whose outcome is not known
        self._genomes: dict[int, Genome] = {}  # of indices after one whose genome is not known

    def stage_run(self) -> StageRun:
        """What the planner needs to know of the stage."""
        search = self.search
        return StageRun(self.stage, self.prepared, self.pool, self.space.genes, search.version, search.population)

    def tell(self, outcomes: Iterable[tuple[int, Outcome]]) -> None:
        """Take outcomes, by index; the search is told each once all before it are there."""
        self._outcomes.update(outcomes)
        while self.search.told in self._outcomes and self.search.told < self.search.asked:
            self.search.tell(self._outcomes.pop(self.search.told))

    def starts(self, keys: Sequence[Key], genomes: Mapping[int, Genome]) -> list[Start]:
        """These candidates as tasks; those of the stage that are not in `genomes` are asked for.

        Raises:
            SearchError: one is to be asked for out of its turn.
        """
        return [self._start(key, genomes) for key in keys]

    def replay(self, candidate: Candidate) -> str | None:
        """Take a finished candidate of the log; returns why the log cannot be gone on with."""
        problem = self.problem_of(candidate)
        if problem is None and candidate.genome is not None:
            self.show(candidate.index, candidate.genome)
            self.tell([(candidate.index, candidate.told)])
        return problem

    def show(self, index: int, genome: Genome) -> None:
        """Take the genome of a candidate that was asked for before; it is never computed again."""
        if index < self.search.asked:
            return
        self._genomes[index] = genome
        while (following := self._genomes.pop(self.search.asked, None)) is not None:
            self.search.replay(following)
        self.tell([])

    def hole(self) -> str | None:
        """Why a log that was replayed cannot be gone on with: candidates are missing in it."""
        if not self._genomes:
            return None
        return f"lacks candidate {self.search.asked}, though later ones are there; somebody has deleted it"

    def problem_of(self, candidate: Candidate) -> str | None:
        """What keeps a line of a log from being this run's: another algorithm, or genomes that mean other recipes."""
        if candidate.algorithm != self.search.version:
            return f"was begun with {candidate.algorithm}, this version has {self.search.version}"
        if candidate.genome is None or candidate.index >= _DECODED:
            return None
        if self.space.decode(candidate.genome).digest != candidate.recipe_digest:
            return f"holds a genome at {candidate.stage} {candidate.index} that decodes to another recipe than it did"
        return None

    def shared_fields(self) -> dict[str, Any]:
        """The fields that every task after prepare shares."""
        spec = self.manifest.spec
        return {
            "sources": [*sources_of(self.manifest, {s.name: s.digest for s in self.prepared.sources}), *self.winners],
            "storage": spec.storage,
            "trust_remote_code": spec.trust_remote_code,
            "threads": spec.evaluation.threads,
            "batch_size": spec.evaluation.batch_size,
            "timeout_seconds": self.worker.timeout_seconds,
            "report_dir": self.report_dir,
        }

    def scoring_fields(self) -> dict[str, Any]:
        """The fields that every task shares which scores recipes."""
        return self.shared_fields() | {
            "objectives": self.manifest.spec.evaluation.objectives,
            "data": data_digests(self.prepared),
            "mask_seed": self.stage.search.seed,
        }

    def _start(self, key: Key, genomes: Mapping[int, Genome]) -> Start:
        genome, recipe = self._proposed(key, genomes)
        trace = {"stage": key.stage, "index": key.index, "genome": genome}
        return Start(key, EvaluateTask(**self.scoring_fields(), recipe=recipe, trace=trace), genome)

    def _proposed(self, key: Key, genomes: Mapping[int, Genome]) -> tuple[Genome | None, Recipe]:
        if key.stage == BASELINES:
            return None, self.baselines[key.index].recipe
        genome = genomes.get(key.index)
        if genome is None:
            if key.index != self.search.asked:
                raise SearchError(f"candidate {key.index} is asked for, and it is {self.search.asked}'s turn")
            genome = self.search.ask()
        return genome, self.space.decode(genome)


def begin_stage(run: Run, number: int, prepared: PrepareResult | None = None) -> Proposer:
    """Begin a stage of the manifest: the run has it from then on.

    `prepared` is what was found of its models; left out, what was found when the run began.

    Raises:
        InputError: the space does not fit the models, or the search the space.
    """
    proposer = Proposer(run.common, number, prepared or run.prepared)
    run.stages.append(proposer.stage_run())
    return proposer
