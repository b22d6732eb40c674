"""The end of a stage: its finalists, ranked by their scores on select items."""

import math

from evomerge_contract.report import PoolRow, SelectResult, SelectRow
from evomerge_contract.task import ConcludeTask, Finalist, SelectTask
from evomerge_worker.scoring import Score, Scoring


def finalist_name(index: int) -> str:
    """How a finalist is named among those that could not be scored."""
    return f"finalist {index}"


def select(task: SelectTask | ConcludeTask, score: Score) -> SelectResult:
    """Rank the finalists: the best score on select items first (ties: the higher search fitness, the lower index).

    Where the method draws masks, the score is the mean over `task.mask_seeds`. A finalist that cannot be scored, with
    one of the seeds, is named with its reason in `unscored`. `score` is called once per recipe and mask seed.

    Raises:
        CandidateError: no finalist can be scored.
    """
    scoring = Scoring(task.objectives, score)
    rows = [row for finalist in task.finalists if (row := _row(finalist, task, scoring))]
    if not rows:
        raise scoring.none_left("finalist")
    return SelectResult(
        ranked=sorted(rows, key=lambda row: (-row.score, -row.fitness, row.index)),
        unscored=scoring.unscored,
        mask_seeds=task.mask_seeds,
        pool=_pool(task, scoring) if isinstance(task, SelectTask) else None,
    )


def _pool(task: SelectTask, scoring: Scoring) -> list[PoolRow] | None:
    """The models that the finalists were merged from; one that cannot be scored is named among the unscored."""
    if task.pool is None:
        return None
    scored = [(model.name, scoring.attempt(model.recipe, "select", task.mask_seed, model.name)) for model in task.pool]
    return [PoolRow(name=name, score=found.fitness) for name, found in scored if found is not None]


def _row(finalist: Finalist, task: SelectTask | ConcludeTask, scoring: Scoring) -> SelectRow | None:
    """A finalist on select items; None if it fails with any of the seeds: it is no better than its worst masks."""
    fitness = []
    for seed in task.mask_seeds or [task.mask_seed]:
        scored = scoring.attempt(finalist.recipe, "select", seed, finalist_name(finalist.index))
        if scored is None:
            return None
        fitness.append(scored.fitness)
    mean = fitness[0] if len(fitness) == 1 else math.fsum(fitness) / len(fitness)
    row = SelectRow(index=finalist.index, fitness=finalist.fitness, score=mean)
    if task.mask_seeds is None:
        return row
    return row.model_copy(update={"mask_scores": fitness, "spread": max(fitness) - min(fitness)})
