"""After a stage's search: its finalists, the tasks that choose and export the winner, and the report of the run."""

import math
from collections.abc import Iterable, Mapping, Sequence

from evomerge_contract.candidate import Candidate
from evomerge_contract.methods import METHODS
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import ConcludeResult, RunReport, SelectResult, StageFacts
from evomerge_contract.task import (
    MASKS,
    Baseline,
    CardFacts,
    ConcludeTask,
    ExportTask,
    Finalist,
    SelectTask,
    mask_seeds,
)
from evomerge_operator.errors import RunError
from evomerge_operator.plan.progress import Result
from evomerge_operator.plan.proposer import Proposer
from evomerge_operator.plan.run import LONG_SECONDS, Run, dtype_of, identity
from evomerge_operator.spaces import alone

FINALISTS = 5


def finalists(proposer: Proposer, results: Mapping[int, Result]) -> list[int]:
    """The indices of the best five, as the search ranks them, of different recipes.

    Raises:
        RunError: no candidate succeeded.
    """
    best: dict[str, int] = {}
    for index in proposer.search.ranked({index: result.outcome for index, result in results.items()}):
        best.setdefault(results[index].recipe_digest, index)
    if not best:
        raise RunError("no candidate succeeded, so there is nothing to choose from; the log names the reasons")
    return list(best.values())[:FINALISTS]


def select_task(proposer: Proposer, chosen: Sequence[Candidate]) -> SelectTask:
    """Rank the finalists on select items; of several stages, beside the models that they were merged from."""
    several = len(proposer.manifest.spec.stages) > 1
    pool = [Baseline(name=name, role="source", recipe=_alone(proposer, name)) for name in proposer.pool]
    evaluations = len(chosen) * len(_mask_seeds(proposer) or [0]) + (len(pool) if several else 0)
    return SelectTask(
        **proposer.scoring_fields() | _limit(proposer, evaluations),
        finalists=[_finalist(proposer, candidate) for candidate in chosen],
        mask_seeds=_mask_seeds(proposer),
        pool=pool if several else None,
    )


def stage_winner_task(proposer: Proposer, selected: SelectResult, winner: Candidate, out: str) -> ExportTask:
    """Write a stage's winner to the folder `out`, as a model for the stages that follow: the best finalist, or the best
    model of the pool where none is better."""
    return ExportTask(
        **proposer.shared_fields() | {"timeout_seconds": LONG_SECONDS},
        out=out,
        recipe=stage_winner_recipe(proposer, selected, winner),
        mask_seed=proposer.stage.search.seed,
    )


def stage_winner_recipe(proposer: Proposer, selected: SelectResult, winner: Candidate) -> Recipe:
    """The recipe of what a stage leaves: that of its best finalist, or the best model of the pool alone."""
    best = selected.best_of_pool
    return winner_recipe(proposer, winner) if selected.gained or best is None else _alone(proposer, best.name)


def stops(run: Run) -> bool:
    """Whether the run's stage is its last: there is none after it, or it has gained nothing and is to stop then."""
    stage, selected = run.stage, run.stage.selected
    stopped = stage.stage.on_no_gain == "Stop" and selected is not None and not selected.gained
    return stopped or len(run.stages) == len(run.manifest.spec.stages)


def best_stage(run: Run) -> int:
    """The number of the stage whose winner is the run's: the best on select items, and of two the earlier."""
    scores = [stage.selected.ranked[0].score if stage.selected else -math.inf for stage in run.stages]
    return scores.index(max(scores))


def conclude_task(
    proposer: Proposer, chosen: Sequence[Candidate], selected: SelectResult | None, compared: Sequence[str]
) -> ConcludeTask:
    """Score the test items, for the winner among `chosen`, the other stages' winners and the baselines named in
    `compared`.

    `chosen` are the finalists, which `selected` ranks. Without it (a run that was begun before there was a task of its
    own for that), the task ranks them itself.
    """
    seeds = _mask_seeds(proposer) if selected is None else None
    # Each evaluation may take as long as a candidate.
    others = [
        Baseline(name=winner.name, role="stage", recipe=_alone(proposer, winner.name))
        for winner in proposer.winners
        if winner.name != proposer.stage.name
    ]
    evaluations = len(chosen) * (MASKS if seeds else 1) + 1 + len(others) + len(proposer.baselines)
    return ConcludeTask(
        **proposer.scoring_fields() | _limit(proposer, evaluations),
        finalists=[_finalist(proposer, candidate) for candidate in chosen],
        selected=selected,
        stage=proposer.stage.name if len(proposer.manifest.spec.stages) > 1 else None,
        baselines=[*(baseline for baseline in proposer.baselines if baseline.name in compared), *others],
        mask_seeds=seeds,
        bootstrap_seed=proposer.stage.search.seed,
    )


def winner_recipe(proposer: Proposer, winner: Candidate) -> Recipe:
    """The recipe of the candidate that the conclusion chose."""
    return proposer.space.decode(winner.genome or ())


def export_task(
    proposer: Proposer,
    winner: Candidate,
    conclusion: ConcludeResult,
    out: str,
    *,
    facts: str | None = None,
    recipe_text: str | None = None,
    drop: Sequence[str] = (),
    earlier: Mapping[str, Recipe] | None = None,
) -> ExportTask:
    """Write the winner to the folder `out`; with `facts` and `recipe_text` the log, report and recipe as well.

    The winners of stages that lie in the folders `drop` go then. Of the stages' winners, by their names, `earlier` has
    the recipes of those that the winner is made of.
    """
    stage, scoring = proposer.stage, proposer.scoring_fields()
    return ExportTask(
        **proposer.shared_fields() | {"timeout_seconds": LONG_SECONDS},
        out=out,
        facts=facts,
        drop=list(drop) or None,
        recipe_text=recipe_text,
        recipe=winner_recipe(proposer, winner),
        mask_seed=stage.search.seed,
        card=CardFacts(
            run=proposer.manifest.metadata.name,
            method=stage.space.method,
            algorithm=proposer.search.version,
            candidates=stage.search.candidates,
            seed=stage.search.seed,
            objectives=scoring["objectives"],
            data=scoring["data"],
            conclusion=conclusion,
            earlier=dict(earlier) if earlier else None,
        ),
    )


def run_report(
    run: Run,
    candidates: Iterable[Candidate],
    conclusion: ConcludeResult | None = None,
    recipe: Recipe | None = None,
) -> RunReport:
    """Everything that the report page and the log show; `candidates` are those of all stages, with their genomes."""
    return RunReport(
        run=run.manifest.metadata.name,
        identity=identity(run.manifest, run.prepared),
        baseline_names=None if run.pinned is None else list(run.pinned),
        manifest=run.manifest.wire(),
        prepared=run.prepared,
        genes=[gene.label for gene in run.stages[best_stage(run) if conclusion else -1].genes],
        baselines=[candidate for _, candidate in sorted(run.compared.finished.items())],
        candidates=list(candidates),
        conclusion=conclusion,
        recipe=recipe,
        stages=_stage_facts(run) if len(run.manifest.spec.stages) > 1 else None,
    )


def _stage_facts(run: Run) -> list[StageFacts]:
    return [
        StageFacts(name=stage.name, genes=[gene.label for gene in stage.genes], selected=stage.selected)
        for stage in run.stages
    ]


def scored_baselines(run: Run) -> list[str]:
    """The baselines that the winner can be compared with, by name."""
    finished = run.compared.finished
    return [b.name for i, b in enumerate(run.baselines) if i in finished and finished[i].outcome == "Succeeded"]


def _finalist(proposer: Proposer, candidate: Candidate) -> Finalist:
    recipe = proposer.space.decode(candidate.genome or ())
    return Finalist(index=candidate.index, fitness=candidate.fitness or 0.0, recipe=recipe)


def _alone(proposer: Proposer, model: str) -> Recipe:
    return alone(model, dtype_of(proposer.prepared))


def _mask_seeds(proposer: Proposer) -> list[int] | None:
    """The seeds that finalists are scored with, where the method draws masks."""
    random = METHODS[proposer.stage.space.method].random
    return mask_seeds(proposer.stage.search.seed) if random else None


def _limit(proposer: Proposer, evaluations: int) -> dict[str, int]:
    return {"timeout_seconds": proposer.worker.timeout_seconds * evaluations}
