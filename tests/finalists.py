"""Finalists and baselines to choose among, for tests, with made-up scores instead of models."""

from collections.abc import Callable

from evomerge_contract.manifest import Jsonl, MetricName, Objective, SplitName
from evomerge_contract.recipe import Recipe, RecipeModel
from evomerge_contract.report import ItemScore
from evomerge_contract.task import Baseline, ConcludeTask, Finalist

ITEMS = 200
Score = Callable[[Recipe, SplitName, int], dict[str, list[ItemScore]]]


def recipe(name: str) -> Recipe:
    return Recipe(merge_method="linear", models=[RecipeModel(model=name)])


def objective(name: str = "o", metric: MetricName = "exact_match", weight: str = "1") -> Objective:
    return Objective(name=name, jsonl=Jsonl(search="a", select="b", test="c"), metric=metric, weight=weight)


def share(right: float, skills: tuple[str, ...] = ()) -> list[ItemScore]:
    """Item scores of which the given share is right: the first ones."""
    skill = [skills[i * len(skills) // ITEMS] if skills else None for i in range(ITEMS)]
    return [ItemScore(value=float(i < right * ITEMS), skill=skill[i]) for i in range(ITEMS)]


def task(finalists: list[tuple[int, float]], baselines: list[Baseline] | None = None, **fields: object) -> ConcludeTask:
    """Finalists are (index, search fitness); the recipe of finalist 3 names the model "f3"."""
    sources = [Baseline(name=name, role="source", recipe=recipe(name)) for name in ("red", "blue")]
    average = Baseline(name="plain average", role="average", recipe=recipe("average"))
    values = {"sources": [], "report_dir": "file:///tmp", "objectives": [objective()], "data": {}} | fields
    return ConcludeTask(
        finalists=[Finalist(index=i, fitness=f, recipe=recipe(f"f{i}")) for i, f in finalists],
        baselines=[*sources, average] if baselines is None else baselines,
        **values,
    )


def table(figures: dict[str, float | Exception]) -> tuple[Score, list[tuple[str, str]]]:
    """A score function that looks up "model/split", and the list of its calls."""
    calls: list[tuple[str, str]] = []

    def score(asked: Recipe, split: SplitName, seed: int) -> dict[str, list[ItemScore]]:
        assert asked.models
        calls.append((asked.models[0].model, split))
        figure = figures[f"{asked.models[0].model}/{split}"]
        if isinstance(figure, Exception):
            raise figure
        return {"o": share(figure)}

    return score, calls


SEEDS = [7, 8, 9, 10, 11]


def drawn(figures: dict[str, list[float | Exception]]) -> tuple[Score, list[tuple[str, str, int]]]:
    """A score function that looks up "model/split" and there the place of the mask seed, and the list of its calls."""
    calls: list[tuple[str, str, int]] = []

    def score(asked: Recipe, split: SplitName, seed: int) -> dict[str, list[ItemScore]]:
        assert asked.models
        calls.append((asked.models[0].model, split, seed))
        figure = figures[f"{asked.models[0].model}/{split}"][SEEDS.index(seed)]
        if isinstance(figure, Exception):
            raise figure
        return {"o": share(figure)}

    return score, calls


def random_task(finalists: list[tuple[int, float]]) -> ConcludeTask:
    """As `task`, for a method that draws masks, in a run of seed 7."""
    return task(finalists, mask_seed=7, mask_seeds=SEEDS)
