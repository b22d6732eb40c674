"""The end of a run: finalists on select items, then the best of them and the baselines once on test items."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from evomerge_contract.manifest import Objective, SplitName
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import ConcludeResult, Interval, ItemScore, ScoreRow, SelectRow, fitness_of
from evomerge_contract.task import Baseline, ConcludeTask, Finalist
from evomerge_worker.errors import CandidateError, InputError
from evomerge_worker.evaluate.metrics import aggregate
from evomerge_worker.evaluate.statistics import fitness_samples, interval

Items = dict[str, list[ItemScore]]
Score = Callable[[Recipe, SplitName, int], Items]
Failures = dict[str, CandidateError]
Role = Literal["winner", "source", "average", "default", "base"]


@dataclass(frozen=True)
class _Scored:
    """A recipe's item scores on one split by objective, and the figures made of them."""

    items: Items
    scores: dict[str, float]
    skills: dict[str, float]
    fitness: float


@dataclass(frozen=True)
class _Selected:
    """A finalist with its select score under each mask seed; one alone where its method draws no masks."""

    finalist: Finalist
    fitness: list[float]

    @property
    def score(self) -> float:
        """The mean over the masks."""
        return self.fitness[0] if len(self.fitness) == 1 else math.fsum(self.fitness) / len(self.fitness)


_Attempt = Callable[[Recipe, SplitName, int, str], _Scored | None]


def conclude(task: ConcludeTask, score: Score) -> ConcludeResult:
    """Choose the winner on select items and compare it with the baselines on test items.

    The winner has the best select score (ties: the higher search fitness, then the lower index), where masks are drawn
    the best mean over the mask seeds. Test items are scored with the masks of `task.mask_seed` alone, those of the
    baselines too: a baseline has not been chosen for its masks. `score` gives a recipe's item scores by objective, in
    the order of the items; it is called once per recipe, split and mask seed.

    What cannot be scored (a CandidateError, or a figure that is not finite) is named with its reason in `unscored`.
    A finalist of that kind is passed over; when it fails on test items only, the next best on select items wins.
    A baseline of that kind has no row: the comparison stands as long as one source has one.

    Raises:
        InputError: no baseline is a source.
        CandidateError: no finalist, or no source, can be scored.
    """
    if all(baseline.role != "source" for baseline in task.baselines):
        raise InputError.at("baselines", "none is a source; the winner is compared with the best source")
    failures: Failures = {}
    attempt = _attempting(task.objectives, score, failures)
    seeds = task.mask_seeds or [task.mask_seed]
    selected = [found for finalist in task.finalists if (found := _selected(finalist, seeds, attempt))]
    winner, on_test = _winner(selected, task.mask_seed, attempt, failures)
    against = [(b, s) for b in task.baselines if (s := attempt(b.recipe, "test", task.mask_seed, b.name))]
    table = _table(task, on_test, against)
    best_source = _best_source(table, failures)
    gap = best_source.winner_minus_interval
    return ConcludeResult(
        winner=winner.index,
        select=[_select_row(one, drawn=task.mask_seeds is not None) for one in selected],
        test=table,
        test_items=sum(len(scores) for scores in on_test.items.values()),
        best_source=best_source.name,
        beats_best_source=gap is not None and gap.low > 0,
        unscored={name: f"{error.reason} on {error}" for name, error in failures.items()},
        mask_seeds=task.mask_seeds,
    )


def _attempting(objectives: list[Objective], score: Score, failures: Failures) -> _Attempt:
    """A function that scores each recipe once per split and seed, and notes failures under the name it is given."""
    done: dict[tuple[str, SplitName, int], _Scored | CandidateError] = {}

    def attempt(recipe: Recipe, split: SplitName, seed: int, name: str) -> _Scored | None:
        key = (recipe.digest, split, seed)
        if key not in done:
            try:
                done[key] = _figures(objectives, score(recipe, split, seed))
            except CandidateError as error:
                done[key] = CandidateError(error.reason, f"{split} items: {error}")
        result = done[key]
        if isinstance(result, CandidateError):
            failures[name] = result
            return None
        return result

    return attempt


def _selected(finalist: Finalist, seeds: list[int], attempt: _Attempt) -> _Selected | None:
    """A finalist on select items; None if it fails with any of the seeds: it is no better than its worst masks."""
    fitness = []
    for seed in seeds:
        scored = attempt(finalist.recipe, "select", seed, f"finalist {finalist.index}")
        if scored is None:
            return None
        fitness.append(scored.fitness)
    return _Selected(finalist, fitness)


def _select_row(one: _Selected, *, drawn: bool) -> SelectRow:
    row = SelectRow(index=one.finalist.index, fitness=one.finalist.fitness, score=one.score)
    spread = max(one.fitness) - min(one.fitness)
    return row.model_copy(update={"mask_scores": one.fitness, "spread": spread}) if drawn else row


def _winner(selected: list[_Selected], seed: int, attempt: _Attempt, failures: Failures) -> tuple[Finalist, _Scored]:
    """The best on select items that can be scored on test items, and its test scores."""
    for one in sorted(selected, key=lambda one: (-one.score, -one.finalist.fitness, one.finalist.index)):
        if on_test := attempt(one.finalist.recipe, "test", seed, f"finalist {one.finalist.index}"):
            return one.finalist, on_test
    raise _none_left("finalist", failures)


def _best_source(table: Sequence[ScoreRow], failures: Failures) -> ScoreRow:
    sources = [row for row in table if row.role == "source"]
    if not sources:
        raise _none_left("source", failures)
    return max(sources, key=lambda row: row.score)


def _none_left(kind: str, failures: Failures) -> CandidateError:
    told = "; ".join(f"{name}: {error.reason} on {error}" for name, error in failures.items())
    return CandidateError(list(failures.values())[-1].reason, f"no {kind} could be scored ({told})")


def _table(task: ConcludeTask, winner: _Scored, against: list[tuple[Baseline, _Scored]]) -> list[ScoreRow]:
    """The winner's row, then the baselines' in their order."""
    samples = fitness_samples(task.objectives, [winner.items, *(s.items for _, s in against)], task.bootstrap_seed)
    rows = [_row("winner", "winner", winner, interval(samples[:, 0]))]
    for column, (baseline, scored) in enumerate(against, start=1):
        row = _row(baseline.name, baseline.role, scored, interval(samples[:, column]))
        gap = interval(samples[:, 0] - samples[:, column])
        minus = {"winner_minus": winner.fitness - scored.fitness, "winner_minus_interval": gap}
        rows.append(row.model_copy(update=minus))
    return rows


def _row(name: str, role: Role, scored: _Scored, own: Interval) -> ScoreRow:
    return ScoreRow(
        name=name, role=role, score=scored.fitness, interval=own, scores=scored.scores, skills=scored.skills
    )


def _figures(objectives: list[Objective], items: Items) -> _Scored:
    """The figures of item scores; CandidateError where one is not finite."""
    scores = {o.name: aggregate(o.metric, items[o.name]) for o in objectives}
    return _Scored(items, scores, _skills(objectives, items), fitness_of(objectives, scores))


def _skills(objectives: list[Objective], items: Items) -> dict[str, float]:
    """Each skill's score in its metric's own direction, in the order of first appearance."""
    skills = {}
    for objective in objectives:
        of_skill: dict[str, list[ItemScore]] = {}
        for item in items[objective.name]:
            if item.skill is not None:
                of_skill.setdefault(item.skill, []).append(item)
        for skill, scores in of_skill.items():
            name = skill if len(objectives) == 1 else f"{objective.name}/{skill}"
            skills[name] = aggregate(objective.metric, scores)
    return skills
