"""What to do next: pure decisions over what is known of a run. The executors carry them out.

A run is four steps: prepare, the candidates (baselines and the stage's search), conclude, export. Both executors,
local and on a cluster, ask the same functions: `next_starts` while candidates remain, then `conclude_task` and
`export_task`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

from evomerge_contract.candidate import Candidate, FailureReason, Genome
from evomerge_contract.methods import METHODS
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import ConcludeResult, Report, RunReport, fitness_of
from evomerge_contract.task import MASKS, CardFacts, ConcludeTask, EvaluateTask, ExportTask, Finalist, mask_seeds
from evomerge_operator.errors import RunError
from evomerge_operator.prepared import LONG_SECONDS, Run, common_fields, data_digests, identity
from evomerge_operator.rules import RESERVED_STAGE

BASELINES = RESERVED_STAGE
FINALISTS = 5
MAX_ATTEMPTS = 2
"""A candidate that failed is tried once more, then its failure is its outcome."""
_HOPELESS = frozenset({"NotFinite"})  # the same again next time: not worth a second attempt


@dataclass(frozen=True, order=True)
class Key:
    """Which candidate: a stage (or the baselines) and an index in it."""

    stage: str
    index: int


class Start(NamedTuple):
    """An action: carry out this task for this candidate."""

    key: Key
    task: EvaluateTask
    genome: Genome | None


@dataclass(frozen=True)
class State:
    """What is known at a moment.

    `genomes` are those of the search's indices 0, 1, … as far as asked; `fitness` the outcomes of its leading indices
    as far as all of them are finished (None: failed).
    """

    finished: Mapping[Key, Candidate]
    genomes: Sequence[Genome]
    fitness: Sequence[float | None]
    attempts: Mapping[Key, int]
    running: Set[Key]


def log_order(run: Run) -> list[Key]:
    """Every candidate in the order of the log: the baselines, then the search by index."""
    named = [Key(BASELINES, i) for i in range(len(run.baselines))]
    return named + [Key(run.stage, k) for k in range(run.candidates)]


def next_starts(run: Run, state: State, slots: int) -> list[Start]:
    """At most `slots` candidates to start now; none when the search waits, is done or has failed too often."""
    if slots <= 0 or too_many_failures(run, state.fitness):
        return []
    starts: list[Start] = []
    for index, baseline in enumerate(run.baselines):
        key = Key(BASELINES, index)
        if key not in state.finished and key not in state.running and len(starts) < slots:
            starts.append(_start(run, key, baseline.recipe))
    genomes = list(state.genomes)
    for index in range(len(state.fitness), run.candidates):
        if len(starts) >= slots:
            break
        if index == len(genomes):
            known = max(0, index - run.manifest.spec.stages[0].search.lag + 1)
            if known > len(state.fitness):
                break
            genomes.append(run.search.ask(index, genomes, state.fitness[:known]))
        key = Key(run.stage, index)
        if key not in state.finished and key not in state.running:
            starts.append(_start(run, key, run.space.decode(genomes[index]), genomes[index]))
    return starts


def settle(run: Run, state: State, start: Start, report: Report) -> Candidate | None:
    """The candidate that a report makes of a start; None when it is to be tried again.

    Reports that say the input is wrong, or storage away, are not for this function: they are no candidate's fault.
    """
    attempts = state.attempts.get(start.key, 0) + 1
    fitness, reason, message = _judge(start.task, report)
    if fitness is None and attempts < MAX_ATTEMPTS and reason not in _HOPELESS:
        return None
    named = run.baselines[start.key.index] if start.key.stage == BASELINES else None
    return Candidate(
        stage=start.key.stage,
        index=start.key.index,
        generation=0 if named else start.key.index // run.search.population,
        name=named.name if named else None,
        genome=start.genome,
        recipe=named.recipe if named else None,
        recipe_digest=start.task.recipe.digest,
        algorithm=run.search.version,
        outcome="Failed" if fitness is None else "Succeeded",
        fitness=fitness,
        scores=report.evaluate.scores if report.evaluate and fitness is not None else {},
        reason=reason,
        message=message and message[:1000],
        report=None if fitness is None else report.task,
        attempts=attempts,
        seconds=report.seconds,
        host=report.host,
    )


def _judge(task: EvaluateTask, report: Report) -> tuple[float | None, FailureReason | None, str | None]:
    """The fitness that a report tells, or else reason and message of the failure."""
    if report.evaluate is None:
        return None, report.reason or "Garbage", report.message or "the report holds neither a result nor a reason"
    scores = report.evaluate.scores
    if scores.keys() != {o.name for o in task.objectives}:
        return None, "Garbage", f"the report scores {sorted(scores)}"
    fitness = fitness_of(task.objectives, scores)
    if not isfinite(fitness):
        return None, "NotFinite", f"the fitness is {fitness}"
    return fitness, None, None


def replay_problem(run: Run, candidates: Sequence[Candidate]) -> str | None:
    """What keeps a log from being this run's, beside its identity: a hole, or genomes that mean other recipes."""
    for key, candidate in zip(log_order(run), candidates, strict=False):
        found = Key(candidate.stage, candidate.index)
        if found != key:
            return f"holds {found.stage} {found.index} where {key.stage} {key.index} should be"
        problem = candidate_problem(run, candidate)
        if problem:
            return problem
    return None


def candidate_problem(run: Run, candidate: Candidate) -> str | None:
    """What keeps a line of the log from being this run's: another algorithm, or a genome that means another recipe."""
    problem = version_problem(run, candidate)
    if problem:
        return problem
    if candidate.genome is not None and run.space.decode(candidate.genome).digest != candidate.recipe_digest:
        return f"holds a genome at {candidate.stage} {candidate.index} that decodes to another recipe than it did"
    return None


def version_problem(run: Run, candidate: Candidate) -> str | None:
    """What keeps a line of the log from being this run's: another algorithm's version."""
    if candidate.algorithm == run.search.version:
        return None
    return f"was begun with {candidate.algorithm}, this version has {run.search.version}"


def all_sources_failed(run: Run, finished: Mapping[Key, Candidate]) -> str | None:
    """Why there is nothing to compare with, once every source alone has failed."""
    keys = [Key(BASELINES, i) for i, b in enumerate(run.baselines) if b.role == "source"]
    sources = [finished[key] for key in keys if key in finished]
    if len(sources) < len(keys) or any(c.outcome == "Succeeded" for c in sources):
        return None
    return "no source alone could be evaluated: " + "; ".join(f"{c.name}: {c.reason} ({c.message})" for c in sources)


def too_many_failures(run: Run, fitness: Sequence[float | None]) -> bool:
    """Whether more candidates failed than the budget allows."""
    return list(fitness).count(None) > run.manifest.spec.budget.failures


def failures_in_words(run: Run, finished: Mapping[Key, Candidate]) -> str:
    """Why a search with too many failures ended."""
    failed = [c for key, c in finished.items() if key.stage == run.stage and c.outcome == "Failed"]
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(c.reason for c in failed).most_common())
    latest = max(failed, key=lambda c: c.index)
    return (
        f"{len(failed)} candidate{'s' if len(failed) != 1 else ''} failed ({reasons}), more than spec.budget.failures "
        f"({run.manifest.spec.budget.failures}) allows; candidate {latest.index} said: {latest.message}"
    )


def finalists(run: Run, finished: Mapping[Key, Candidate]) -> list[Finalist]:
    """The best five by fitness, of different recipes; the earlier index wins a tie.

    Raises:
        RunError: no candidate succeeded.
    """
    scored = [c for key, c in finished.items() if key.stage == run.stage and c.fitness is not None]
    best: dict[str, Candidate] = {}
    for candidate in sorted(scored, key=lambda c: (-(c.fitness or 0.0), c.index)):
        best.setdefault(candidate.recipe_digest, candidate)
    if not best:
        raise RunError("no candidate succeeded, so there is nothing to choose from; the log names the reasons")
    return [
        Finalist(index=c.index, fitness=c.fitness or 0.0, recipe=run.space.decode(c.genome or ()))
        for c in list(best.values())[:FINALISTS]
    ]


def conclude_task(run: Run, finished: Mapping[Key, Candidate]) -> ConcludeTask:
    """Select among the finalists and score the test items, for the winner and for the baselines that succeeded."""
    spec = run.manifest.spec
    seed = spec.stages[0].search.seed
    chosen = finalists(run, finished)
    random = METHODS[spec.stages[0].parameter_space.method].random
    # Each evaluation may take as long as a candidate.
    evaluations = len(chosen) * (MASKS if random else 1) + 1 + len(run.baselines)
    return ConcludeTask(
        **common_fields(run) | {"timeout_seconds": run.manifest.spec.worker.timeout_seconds * evaluations},
        finalists=chosen,
        baselines=[b for i, b in enumerate(run.baselines) if finished[Key(BASELINES, i)].outcome == "Succeeded"],
        mask_seed=seed,
        mask_seeds=mask_seeds(seed) if random else None,
        bootstrap_seed=seed,
        objectives=spec.evaluation.objectives,
        data=data_digests(run.prepared),
    )


def winner_recipe(run: Run, finished: Mapping[Key, Candidate], conclusion: ConcludeResult) -> Recipe:
    """The recipe of the candidate that the conclusion chose."""
    return run.space.decode(finished[Key(run.stage, conclusion.winner)].genome or ())


def export_task(
    run: Run,
    finished: Mapping[Key, Candidate],
    conclusion: ConcludeResult,
    out: str,
    *,
    facts: str | None = None,
    recipe_text: str | None = None,
) -> ExportTask:
    """Write the winner to the folder `out`; with `facts` and `recipe_text` the log, report and recipe as well."""
    stage = run.manifest.spec.stages[0]
    return ExportTask(
        **common_fields(run) | {"timeout_seconds": LONG_SECONDS},
        out=out,
        facts=facts,
        recipe_text=recipe_text,
        recipe=winner_recipe(run, finished, conclusion),
        mask_seed=stage.search.seed,
        card=CardFacts(
            run=run.manifest.metadata.name,
            method=stage.parameter_space.method,
            algorithm=run.search.version,
            candidates=stage.search.candidates,
            seed=stage.search.seed,
            objectives=run.manifest.spec.evaluation.objectives,
            data=data_digests(run.prepared),
            conclusion=conclusion,
        ),
    )


def start_of(run: Run, key: Key, genome: Genome | None) -> Start:
    """The start of a candidate that was asked for before; a baseline has no genome."""
    recipe = run.baselines[key.index].recipe if genome is None else run.space.decode(genome)
    return _start(run, key, recipe, genome)


def run_report(
    run: Run,
    finished: Mapping[Key, Candidate],
    conclusion: ConcludeResult | None = None,
    recipe: Recipe | None = None,
) -> RunReport:
    """Everything that the report page and the log show."""
    return RunReport(
        run=run.manifest.metadata.name,
        identity=identity(run.manifest, run.prepared),
        manifest=run.manifest.wire(),
        prepared=run.prepared,
        genes=[g.label for g in run.space.genes],
        baselines=[c for k, c in sorted(finished.items()) if k.stage == BASELINES],
        candidates=[c for k, c in sorted(finished.items()) if k.stage == run.stage],
        conclusion=conclusion,
        recipe=recipe,
    )


def _start(run: Run, key: Key, recipe: Recipe, genome: Genome | None = None) -> Start:
    task = EvaluateTask(
        **common_fields(run),
        recipe=recipe,
        mask_seed=run.manifest.spec.stages[0].search.seed,
        objectives=run.manifest.spec.evaluation.objectives,
        data=data_digests(run.prepared),
        trace={"stage": key.stage, "index": key.index, "genome": genome},
    )
    return Start(key, task, genome)
