"""The end of a run: the best finalist and the baselines, once on test items."""

from collections.abc import Callable, Sequence
from typing import Literal

from evomerge_contract.candidate import Role
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import ConcludeResult, Interval, ScoreRow, SelectResult
from evomerge_contract.task import Baseline, ConcludeTask, Finalist
from evomerge_worker.errors import InputError
from evomerge_worker.evaluate.statistics import fitness_samples, interval
from evomerge_worker.scoring import Score, Scored, Scoring
from evomerge_worker.select import finalist_name, select
from evomerge_worker.size import Size

RowRole = Literal["winner"] | Role


def conclude(task: ConcludeTask, score: Score, size: Callable[[Recipe], Size]) -> ConcludeResult:
    """Compare the winner, the best of the finalists on select items, with the baselines on test items.

    A task without `selected` ranks its finalists first. Test items are scored with the masks of `task.mask_seed`
    alone, those of the baselines too: a baseline has not been chosen for its masks. `score` is called once per recipe,
    split and mask seed. `size` gives a recipe's size; rows tell of it where a run has several stages, or where models
    differ in depth.

    What cannot be scored is named with its reason in `unscored`. When a finalist fails on test items, the next best
    wins. A baseline that fails has no row: the comparison stands as long as one source has one.

    Raises:
        InputError: no baseline is a source, or `selected` ranks what is no finalist.
        CandidateError: no finalist, or no source, can be scored.
    """
    if all(baseline.role != "source" for baseline in task.baselines):
        raise InputError.at("baselines", "none is a source; the winner is compared with the best source")
    selected = task.selected or select(task, score)
    ranked = _ranked(task, selected)
    scoring = Scoring(task.objectives, score, selected.unscored)
    winner, on_test = _winner(ranked, task.mask_seed, scoring)
    against = [(b, s) for b in task.baselines if (s := scoring.attempt(b.recipe, "test", task.mask_seed, b.name))]
    table = _sized(task, _table(task, on_test, against), [winner.recipe, *(b.recipe for b, _ in against)], size)
    best_source = _best_source(table, scoring)
    gap = best_source.winner_minus_interval
    rows = {row.index: row for row in selected.ranked}
    return ConcludeResult(
        winner=winner.index,
        stage=task.stage,
        select=[rows[finalist.index] for finalist in task.finalists if finalist.index in rows],
        test=table,
        test_items=sum(len(scores) for scores in on_test.items.values()),
        best_source=best_source.name,
        beats_best_source=gap is not None and gap.low > 0,
        unscored=scoring.unscored,
        mask_seeds=selected.mask_seeds,
    )


def _ranked(task: ConcludeTask, selected: SelectResult) -> list[Finalist]:
    """The finalists that could be scored on select items, the best first."""
    finalists = {finalist.index: finalist for finalist in task.finalists}
    for row in selected.ranked:
        if row.index not in finalists:
            raise InputError.at("selected", f"ranks candidate {row.index}, which is no finalist of the task")
    return [finalists[row.index] for row in selected.ranked]


def _winner(ranked: list[Finalist], seed: int, scoring: Scoring) -> tuple[Finalist, Scored]:
    """The first finalist that can be scored on test items, and its test scores."""
    for finalist in ranked:
        if on_test := scoring.attempt(finalist.recipe, "test", seed, finalist_name(finalist.index)):
            return finalist, on_test
    raise scoring.none_left("finalist")


def _best_source(table: Sequence[ScoreRow], scoring: Scoring) -> ScoreRow:
    sources = [row for row in table if row.role == "source"]
    if not sources:
        raise scoring.none_left("source")
    return max(sources, key=lambda row: row.score)


def _table(task: ConcludeTask, winner: Scored, against: list[tuple[Baseline, Scored]]) -> list[ScoreRow]:
    """The winner's row, then the baselines' in their order."""
    samples = fitness_samples(task.objectives, [winner.items, *(s.items for _, s in against)], task.bootstrap_seed)
    rows = [_row("winner", "winner", winner, interval(samples[:, 0]))]
    for column, (baseline, scored) in enumerate(against, start=1):
        row = _row(baseline.name, baseline.role, scored, interval(samples[:, column]))
        gap = interval(samples[:, 0] - samples[:, column])
        minus = {"winner_minus": winner.fitness - scored.fitness, "winner_minus_interval": gap}
        rows.append(row.model_copy(update=minus))
    return rows


def _sized(
    task: ConcludeTask, table: Sequence[ScoreRow], recipes: Sequence[Recipe], size: Callable[[Recipe], Size]
) -> list[ScoreRow]:
    """The rows with their models' sizes, where those are worth telling."""
    sizes = [size(recipe) for recipe in recipes]
    if task.stage is None and len({one.layers for one in sizes}) == 1:
        return list(table)
    first = next((s.per_token for row, s in zip(table, sizes, strict=True) if row.role == "source"), None)
    return [
        row.model_copy(
            update={
                "layers": one.layers,
                "parameters": one.parameters,
                "cost": round(one.per_token / first, 4) if first else None,
            }
        )
        for row, one in zip(table, sizes, strict=True)
    ]


def _row(name: str, role: RowRole, scored: Scored, own: Interval) -> ScoreRow:
    return ScoreRow(
        name=name, role=role, score=scored.fitness, interval=own, scores=scored.scores, skills=scored.skills
    )
