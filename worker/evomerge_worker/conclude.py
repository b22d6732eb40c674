"""The end of a run: finalists on select items, then the best of them and the baselines once on test items."""

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
Score = Callable[[Recipe, SplitName], Items]
Failures = dict[str, CandidateError]
Role = Literal["winner", "source", "average", "default", "base"]


@dataclass(frozen=True)
class _Scored:
    """A recipe's item scores on one split by objective, and the figures made of them."""

    items: Items
    scores: dict[str, float]
    skills: dict[str, float]
    fitness: float


_Attempt = Callable[[Recipe, SplitName, str], _Scored | None]


def conclude(task: ConcludeTask, score: Score) -> ConcludeResult:
    """Choose the winner on select items and compare it with the baselines on test items.

    The winner has the best select score (ties: the higher search fitness, then the lower index). `score` gives a
    recipe's item scores by objective, in the order of the items; it is called once per recipe and split.

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
    selected = [(f, s) for f in task.finalists if (s := attempt(f.recipe, "select", f"finalist {f.index}"))]
    winner, on_test = _winner(selected, attempt, failures)
    against = [(b, s) for b in task.baselines if (s := attempt(b.recipe, "test", b.name))]
    table = _table(task, on_test, against)
    best_source = _best_source(table, failures)
    gap = best_source.winner_minus_interval
    return ConcludeResult(
        winner=winner.index,
        select=[SelectRow(index=f.index, fitness=f.fitness, score=s.fitness) for f, s in selected],
        test=table,
        test_items=sum(len(scores) for scores in on_test.items.values()),
        best_source=best_source.name,
        beats_best_source=gap is not None and gap.low > 0,
        unscored={name: f"{error.reason} on {error}" for name, error in failures.items()},
    )


def _attempting(objectives: list[Objective], score: Score, failures: Failures) -> _Attempt:
    """A function that scores each recipe once per split, and notes failures under the name it is given."""
    done: dict[tuple[str, SplitName], _Scored | CandidateError] = {}

    def attempt(recipe: Recipe, split: SplitName, name: str) -> _Scored | None:
        key = (recipe.digest, split)
        if key not in done:
            try:
                done[key] = _figures(objectives, score(recipe, split))
            except CandidateError as error:
                done[key] = CandidateError(error.reason, f"{split} items: {error}")
        result = done[key]
        if isinstance(result, CandidateError):
            failures[name] = result
            return None
        return result

    return attempt


def _winner(
    selected: list[tuple[Finalist, _Scored]], attempt: _Attempt, failures: Failures
) -> tuple[Finalist, _Scored]:
    """The best on select items that can be scored on test items, and its test scores."""
    for finalist, _ in sorted(selected, key=lambda pair: (-pair[1].fitness, -pair[0].fitness, pair[0].index)):
        if on_test := attempt(finalist.recipe, "test", f"finalist {finalist.index}"):
            return finalist, on_test
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
