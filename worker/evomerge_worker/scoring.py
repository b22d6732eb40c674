"""Recipes scored on a split of the items, and the figures that item scores give."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from evomerge_contract.candidate import FailureReason
from evomerge_contract.manifest import Objective, SplitName
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import ItemScore, fitness_of
from evomerge_worker.errors import CandidateError
from evomerge_worker.evaluate.metrics import aggregate

Items = dict[str, list[ItemScore]]
"""Item scores by objective, in the order of the items."""
Score = Callable[[Recipe, SplitName, int], Items]
"""Gives a recipe's item scores on a split, its masks drawn from a seed."""


@dataclass(frozen=True)
class Scored:
    """A recipe's item scores on one split, and the figures made of them."""

    items: Items
    scores: dict[str, float]
    skills: dict[str, float]
    fitness: float


class Scoring:
    """Scores each recipe once per split and mask seed, and remembers what could not be scored.

    `unscored` holds the reason of each failure under the name that the recipe was scored by.
    """

    def __init__(self, objectives: list[Objective], score: Score, unscored: Mapping[str, str] | None = None) -> None:
        """`unscored` is what is known before."""
        self.unscored = dict(unscored or {})
        self._objectives = objectives
        self._score = score
        self._known: dict[tuple[str, SplitName, int], Scored | CandidateError] = {}
        self._last_reason: FailureReason = "Error"

    def attempt(self, recipe: Recipe, split: SplitName, seed: int, name: str) -> Scored | None:
        """The recipe's figures; None if it cannot be scored (a CandidateError, or a figure that is not finite)."""
        key = (recipe.digest, split, seed)
        if key not in self._known:
            try:
                self._known[key] = _figures(self._objectives, self._score(recipe, split, seed))
            except CandidateError as error:
                self._known[key] = error
        result = self._known[key]
        if isinstance(result, CandidateError):
            self.unscored[name] = f"{result.reason} on {split} items: {result}"
            self._last_reason = result.reason
            return None
        return result

    def none_left(self, kind: str) -> CandidateError:
        """The error that says that no recipe of this kind could be scored."""
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.unscored.items())
        return CandidateError(self._last_reason, f"no {kind} could be scored ({reasons})")


def _figures(objectives: list[Objective], items: Items) -> Scored:
    """The figures of item scores; CandidateError where one is not finite."""
    scores = {o.name: aggregate(o.metric, items[o.name]) for o in objectives}
    return Scored(items, scores, _skills(objectives, items), fitness_of(objectives, scores))


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
