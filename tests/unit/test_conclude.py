"""The end of a run: who wins, what it is compared with, and what happens to what cannot be scored."""

import math

import pytest

from evomerge_contract.manifest import SplitName
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import ConcludeResult, ItemScore
from evomerge_contract.task import Baseline, ConcludeTask, SelectTask
from evomerge_worker.conclude import conclude as conclude_with_sizes
from evomerge_worker.errors import CandidateError, InputError, StorageError
from evomerge_worker.select import select
from evomerge_worker.size import Size
from finalists import ITEMS, SEEDS, Score, drawn, objective, random_task, recipe, share, table, task

_ALIKE = Size(layers=4, parameters=120, per_token=100)


def conclude(task: ConcludeTask, score: Score) -> ConcludeResult:
    """Of models that are all of one size."""
    return conclude_with_sizes(task, score, lambda _: _ALIKE)


BASELINES: dict[str, float | Exception] = {"red/test": 0.3, "blue/test": 0.4, "average/test": 0.35}


def test_the_best_on_select_items_wins_and_only_it_meets_the_test_items() -> None:
    score, calls = table(BASELINES | {"f5/select": 0.7, "f9/select": 0.8, "f9/test": 0.6})
    result = conclude(task([(5, 0.9), (9, 0.85)]), score)
    assert result.winner == 9
    assert [(row.index, row.fitness, row.score) for row in result.select] == [(5, 0.9, 0.7), (9, 0.85, 0.8)]
    assert [(row.name, row.role, row.score) for row in result.test] == [
        ("winner", "winner", 0.6),
        ("red", "source", 0.3),
        ("blue", "source", 0.4),
        ("plain average", "average", 0.35),
    ]
    assert sorted(calls) == sorted(
        [("f5", "select"), ("f9", "select"), ("f9", "test"), ("red", "test"), ("blue", "test"), ("average", "test")]
    )
    assert result.test_items == ITEMS
    assert result.unscored == {}


@pytest.mark.parametrize(
    ("finalists", "winner"),
    [([(1, 0.5), (2, 0.6)], 2), ([(7, 0.5), (4, 0.5)], 4)],
    ids=["higher search fitness", "lower index"],
)
def test_ties_on_select_items(finalists: list[tuple[int, float]], winner: int) -> None:
    figures = {f"f{i}/{split}": 0.5 for i, _ in finalists for split in ("select", "test")}
    score, _ = table(BASELINES | figures)
    assert conclude(task(finalists), score).winner == winner


def test_the_best_source_is_the_hardest_to_beat_and_a_clear_gain_beats_it() -> None:
    score, _ = table(BASELINES | {"f0/select": 0.6, "f0/test": 0.6, "average/test": 0.9})
    result = conclude(task([(0, 0.6)]), score)
    assert result.best_source == "blue"
    assert result.beats_best_source
    rows = {row.name: row for row in result.test}
    blue, winner = rows["blue"], rows["winner"]
    assert blue.winner_minus == pytest.approx(0.2)
    assert blue.winner_minus_interval is not None
    assert 0.1 < blue.winner_minus_interval.low < 0.2 < blue.winner_minus_interval.high < 0.3
    assert winner.winner_minus is None
    assert winner.interval.low < 0.6 < winner.interval.high
    average = rows["plain average"].winner_minus_interval
    assert average is not None
    assert average.high < 0


@pytest.mark.parametrize("right", [0.4, 0.405, 0.2])
def test_no_gain_or_an_unsure_one_does_not_beat_the_best_source(right: float) -> None:
    score, _ = table(BASELINES | {"f0/select": 0.6, "f0/test": right})
    assert not conclude(task([(0, 0.6)]), score).beats_best_source


def test_the_base_is_compared_but_is_no_source() -> None:
    baselines = [
        Baseline(name="base", role="base", recipe=recipe("base")),
        Baseline(name="red", role="source", recipe=recipe("red")),
    ]
    score, _ = table(BASELINES | {"base/test": 0.97, "f0/select": 0.6, "f0/test": 0.6})
    result = conclude(task([(0, 0.6)], baselines), score)
    assert result.best_source == "red"
    assert result.beats_best_source
    assert result.test[1].role == "base"


def test_a_source_may_be_named_winner() -> None:
    baselines = [Baseline(name="winner", role="source", recipe=recipe("red"))]
    score, _ = table(BASELINES | {"f0/select": 0.2, "f0/test": 0.2})
    result = conclude(task([(0, 0.6)], baselines), score)
    assert (result.best_source, result.beats_best_source) == ("winner", False)


def test_skills_and_several_objectives() -> None:
    objectives = [objective("sums", weight="3"), objective("text", "perplexity")]

    def score(asked: Recipe, split: SplitName, seed: int) -> dict[str, list[ItemScore]]:
        return {
            "sums": share(0.75, ("easy", "hard")),
            "text": [ItemScore(value=2.0, count=1.0, skill="prose"), ItemScore(value=0.0, count=3.0)],
        }

    winner = conclude(task([(0, 0.5)], objectives=objectives), score).test[0]
    assert winner.skills == {"sums/easy": 1.0, "sums/hard": 0.5, "text/prose": pytest.approx(math.exp(2))}
    assert winner.scores == {"sums": 0.75, "text": pytest.approx(math.exp(0.5))}
    assert winner.score == pytest.approx((3 * 0.75 - math.exp(0.5)) / 4)
    assert winner.interval.low < winner.score < winner.interval.high


def test_one_objective_names_its_skills_plainly() -> None:
    result = conclude(task([(0, 0.5)]), lambda asked, split, seed: {"o": share(0.5, ("easy", "hard"))})
    assert result.test[0].skills == {"easy": 1.0, "hard": 0.0}


@pytest.mark.parametrize("failure", [CandidateError("OutOfMemory", "no room"), CandidateError("NotFinite", "nan")])
def test_a_finalist_that_fails_on_select_items_is_passed_over(failure: CandidateError) -> None:
    def score(asked: Recipe, split: SplitName, seed: int) -> dict[str, list[ItemScore]]:
        assert asked.models
        if asked.models[0].model != "f1":
            return {"o": share(0.5)}
        raise failure

    result = conclude(task([(1, 0.9), (2, 0.8)]), score)
    assert result.winner == 2
    assert [row.index for row in result.select] == [2]
    assert list(result.unscored) == ["finalist 1"]
    assert "select items" in result.unscored["finalist 1"]


def test_the_next_best_wins_when_the_best_fails_on_test_items() -> None:
    broken = CandidateError("NotFinite", "its logits are not finite")
    score, _ = table(BASELINES | {"f1/select": 0.9, "f1/test": broken, "f2/select": 0.8, "f2/test": 0.7})
    result = conclude(task([(1, 0.9), (2, 0.8)]), score)
    assert result.winner == 2
    assert result.test[0].score == 0.7
    assert result.unscored == {"finalist 1": "NotFinite on test items: its logits are not finite"}


def test_a_baseline_that_fails_has_no_row_and_is_named() -> None:
    broken = CandidateError("NotFinite", "its logits are not finite")
    score, _ = table(BASELINES | {"blue/test": broken, "f0/select": 0.6, "f0/test": 0.6})
    result = conclude(task([(0, 0.6)]), score)
    assert [row.name for row in result.test] == ["winner", "red", "plain average"]
    assert result.best_source == "red"
    assert list(result.unscored) == ["blue"]


def test_no_finalist_left_is_a_failure_with_every_reason() -> None:
    select, test = CandidateError("NotFinite", "NaN"), CandidateError("OutOfMemory", "no room")
    score, _ = table(BASELINES | {"f1/select": select, "f2/select": 0.8, "f2/test": test})
    with pytest.raises(CandidateError, match=r"no finalist .*NotFinite on select items: NaN.*OutOfMemory on test") as e:
        conclude(task([(1, 0.9), (2, 0.8)]), score)
    assert e.value.reason == "OutOfMemory"


def test_no_source_left_is_a_failure() -> None:
    broken = CandidateError("NotFinite", "NaN")
    score, _ = table({"red/test": broken, "blue/test": broken, "average/test": 0.5, "f0/select": 0.6, "f0/test": 0.6})
    with pytest.raises(CandidateError, match="no source"):
        conclude(task([(0, 0.6)]), score)


def test_without_any_source_there_is_nothing_to_conclude() -> None:
    score, calls = table({})
    average = Baseline(name="plain average", role="average", recipe=recipe("average"))
    with pytest.raises(InputError, match="source"):
        conclude(task([(0, 0.6)], [average]), score)
    assert calls == []


def test_a_recipe_is_scored_once_per_split_even_as_winner_and_baseline() -> None:
    baselines = [Baseline(name="red", role="source", recipe=recipe("f0"))]
    score, calls = table({"f0/select": 0.6, "f0/test": 0.6})
    result = conclude(task([(0, 0.6)], baselines), score)
    assert calls == [("f0", "select"), ("f0", "test")]
    assert result.test[1].winner_minus == 0
    assert not result.beats_best_source


def test_trouble_with_storage_is_no_failure_of_a_finalist() -> None:
    score, _ = table({"f1/select": StorageError("no answer")})
    with pytest.raises(StorageError):
        conclude(task([(1, 0.9), (2, 0.8)]), score)


def test_the_same_task_gives_the_same_result() -> None:
    figures = BASELINES | {"f0/select": 0.6, "f0/test": 0.45}
    one, two, other = (conclude(task([(0, 0.6)], bootstrap_seed=seed), table(figures)[0]).wire() for seed in (1, 1, 2))
    assert one == two
    assert one != other


ON_TEST: dict[str, list[float | Exception]] = {"red/test": [0.3], "blue/test": [0.4], "average/test": [0.35]}


def test_the_best_mean_over_the_masks_wins_and_not_the_luckiest_draw() -> None:
    """Finalist 1 is the best with the run's own masks, which the search has chosen it for, and with no other."""
    lucky, steady = [0.9, 0.5, 0.5, 0.5, 0.5], [0.7, 0.7, 0.8, 0.7, 0.7]
    score, calls = drawn(ON_TEST | {"f1/select": lucky, "f2/select": steady, "f2/test": [0.65]})
    result = conclude(random_task([(1, 0.9), (2, 0.8)]), score)
    assert result.winner == 2
    assert result.mask_seeds == SEEDS
    assert [row.mask_scores for row in result.select] == [lucky, steady]
    assert [row.score for row in result.select] == pytest.approx([0.58, 0.72])
    assert [row.spread for row in result.select] == pytest.approx([0.4, 0.1])
    assert result.test[0].score == 0.65
    assert [call for call in calls if call[1] == "test"] == [
        ("f2", "test", 7),
        ("red", "test", 7),
        ("blue", "test", 7),
        ("average", "test", 7),
    ]
    assert sorted(call for call in calls if call[1] == "select") == [
        (name, "select", seed) for name in ("f1", "f2") for seed in SEEDS
    ]


@pytest.mark.parametrize(
    ("on_test", "spread", "luck"),
    [(0.5, 0.2, True), (0.5, 0.05, False), (0.4, 0.2, False), (0.3, 0.2, False)],
    ids=["lead smaller than spread", "lead larger than spread", "no lead", "behind"],
)
def test_a_lead_smaller_than_the_spread_over_masks_may_be_luck(on_test: float, spread: float, luck: bool) -> None:
    select: list[float | Exception] = [0.5, 0.5 + spread, 0.5, 0.5, 0.5]
    score, _ = drawn(ON_TEST | {"f1/select": select, "f1/test": [on_test]})
    result = conclude(random_task([(1, 0.9)]), score)
    assert result.lead == pytest.approx(on_test - 0.4)
    assert result.within_luck is luck


def test_a_finalist_that_fails_with_other_masks_is_passed_over() -> None:
    broken = CandidateError("NotFinite", "NaN")
    score, calls = drawn(
        ON_TEST | {"f1/select": [0.9, 0.9, broken, 0.9, 0.9], "f2/select": [0.5] * 5, "f2/test": [0.5]}
    )
    result = conclude(random_task([(1, 0.9), (2, 0.8)]), score)
    assert result.winner == 2
    assert result.unscored == {"finalist 1": "NotFinite on select items: NaN"}
    assert ("f1", "select", 10) not in calls


def test_without_masks_a_conclusion_says_nothing_of_them() -> None:
    score, _ = table(BASELINES | {"f0/select": 0.6, "f0/test": 0.6})
    result = conclude(task([(0, 0.6)]), score)
    assert not result.within_luck
    assert "maskSeeds" not in result.wire()
    assert result.wire()["select"] == [{"index": 0, "fitness": 0.6, "score": 0.6}]


BROKEN = CandidateError("NotFinite", "NaN")


@pytest.mark.parametrize(
    "figures",
    [
        {"f1/select": [0.7], "f2/select": [0.8], "f3/select": [0.6], "f2/test": [0.6]},
        {"f1/select": [BROKEN], "f2/select": [0.8], "f3/select": [0.8], "f2/test": [BROKEN], "f3/test": [0.3]},
        {"f1/select": [0.5], "f2/select": [0.5], "f3/select": [0.5], "f1/test": [0.2], "red/test": [BROKEN]},
    ],
    ids=["all can be scored", "the winner fails on test items", "ties, and a source fails"],
)
@pytest.mark.parametrize("masks", [False, True], ids=["no masks", "masks"])
def test_select_and_then_conclude_give_what_one_task_gives(
    figures: dict[str, list[float | Exception]], masks: bool
) -> None:
    """Wire forms are compared: every figure, every row and the order of all."""
    entries = ON_TEST | figures
    if masks:  # other figures with the four further seeds
        further = {name: [*of, 0.9, 0.1, 0.4, 0.5] for name, of in figures.items() if name.endswith("/select")}
        entries |= further
    finalists = [(3, 0.7), (1, 0.9), (2, 0.8)]
    whole = task(finalists, mask_seed=7, mask_seeds=SEEDS if masks else None)
    assert (
        conclude(in_two(whole, drawn(entries)[0]), drawn(entries)[0]).wire()
        == conclude(whole, drawn(entries)[0]).wire()
    )


def in_two(whole: ConcludeTask, score: Score) -> ConcludeTask:
    """The conclusion of what a selection of its own has ranked."""
    fields = {name: getattr(whole, name) for name in SelectTask.model_fields if name not in ("kind", "pool")}
    selected = select(SelectTask(**fields), score)
    return whole.model_copy(update={"selected": selected, "mask_seeds": None})


def test_selected_finalists_are_not_scored_on_select_items_again() -> None:
    figures = BASELINES | {"f5/select": 0.7, "f9/select": 0.8, "f9/test": 0.6}
    concluded = in_two(task([(5, 0.9), (9, 0.85)]), table(figures)[0])
    score, calls = table(figures)
    conclude(concluded, score)
    assert calls == [("f9", "test"), ("red", "test"), ("blue", "test"), ("average", "test")]


def test_no_selected_finalist_left_is_a_failure_with_every_reason() -> None:
    figures = BASELINES | {"f1/select": BROKEN, "f2/select": 0.8, "f2/test": CandidateError("OutOfMemory", "no room")}
    score, _ = table(figures)
    with pytest.raises(CandidateError, match=r"no finalist .*NotFinite on select items: NaN.*OutOfMemory on test") as e:
        conclude(in_two(task([(1, 0.9), (2, 0.8)]), score), score)
    assert e.value.reason == "OutOfMemory"


def test_a_ranking_of_what_is_no_finalist_is_refused() -> None:
    figures = BASELINES | {"f1/select": 0.7, "f2/select": 0.8}
    concluded = in_two(task([(1, 0.9), (2, 0.8)]), table(figures)[0])
    score, calls = table(figures)
    with pytest.raises(InputError, match="selected: ranks candidate 2, which is no finalist"):
        conclude(concluded.model_copy(update={"finalists": concluded.finalists[:1]}), score)
    assert calls == []


def test_sizes_are_told_where_models_differ_in_depth_or_a_run_has_several_stages() -> None:
    sizes = {"f5": Size(9, 260, 230), "red": Size(4, 120, 100), "blue": Size(5, 150, 125), "average": Size(4, 120, 100)}

    def size(asked: Recipe) -> Size:
        return sizes[asked.named_models[0]]

    score, _ = table(BASELINES | {"f5/select": 0.7, "f5/test": 0.6})
    rows = conclude_with_sizes(task([(5, 0.9)]), score, size).test
    assert [(row.name, row.layers, row.parameters, row.cost) for row in rows] == [
        ("winner", 9, 260, 2.3),
        ("red", 4, 120, 1.0),
        ("blue", 5, 150, 1.25),
        ("plain average", 4, 120, 1.0),
    ]
    assert all(row.layers is None for row in conclude(task([(5, 0.9)]), score).test)
    staged = conclude(task([(5, 0.9)], stage="dfs"), score)
    assert (staged.stage, [row.cost for row in staged.test]) == ("dfs", [1.0] * 4)
