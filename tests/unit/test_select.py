"""The end of a stage: how its finalists are ranked on select items, and what happens to what cannot be scored."""

import pytest

from evomerge_contract.task import Baseline, SelectTask
from evomerge_worker.errors import CandidateError, StorageError
from evomerge_worker.select import select
from finalists import SEEDS, drawn, recipe, table
from finalists import task as conclude_task

BROKEN = CandidateError("NotFinite", "NaN")


def task(finalists: list[tuple[int, float]], **fields: object) -> SelectTask:
    whole = conclude_task(finalists, **fields)
    return SelectTask(
        **{name: getattr(whole, name) for name in SelectTask.model_fields if name not in ("kind", "pool")}
    )


def test_finalists_are_ranked_by_their_scores_on_select_items_alone() -> None:
    score, calls = table({"f5/select": 0.7, "f9/select": 0.8, "f2/select": 0.9})
    result = select(task([(5, 0.9), (9, 0.85), (2, 0.8)]), score)
    assert [(row.index, row.fitness, row.score) for row in result.ranked] == [
        (2, 0.8, 0.9),
        (9, 0.85, 0.8),
        (5, 0.9, 0.7),
    ]
    assert calls == [("f5", "select"), ("f9", "select"), ("f2", "select")]
    assert result.wire().keys() == {"ranked", "unscored"}


def test_ties_go_to_the_higher_search_fitness_and_then_to_the_lower_index() -> None:
    score, _ = table({f"f{i}/select": 0.5 for i in (1, 2, 7)})
    assert [row.index for row in select(task([(7, 0.5), (1, 0.5), (2, 0.6)]), score).ranked] == [2, 1, 7]


def test_with_masks_the_mean_over_the_seeds_ranks() -> None:
    lucky, steady = [0.9, 0.5, 0.5, 0.5, 0.5], [0.7, 0.7, 0.8, 0.7, 0.7]
    score, calls = drawn({"f1/select": lucky, "f2/select": steady})
    result = select(task([(1, 0.9), (2, 0.8)], mask_seed=7, mask_seeds=SEEDS), score)
    assert [(row.index, row.mask_scores) for row in result.ranked] == [(2, steady), (1, lucky)]
    assert [row.score for row in result.ranked] == pytest.approx([0.72, 0.58])
    assert [row.spread for row in result.ranked] == pytest.approx([0.1, 0.4])
    assert result.mask_seeds == SEEDS
    assert calls == [(name, "select", seed) for name in ("f1", "f2") for seed in SEEDS]


def test_a_finalist_that_fails_with_one_of_the_masks_is_named_with_its_reason_and_scored_no_further() -> None:
    score, calls = drawn({"f1/select": [0.9, 0.9, BROKEN, 0.9, 0.9], "f2/select": [0.5] * 5})
    result = select(task([(1, 0.9), (2, 0.8)], mask_seed=7, mask_seeds=SEEDS), score)
    assert [row.index for row in result.ranked] == [2]
    assert result.unscored == {"finalist 1": "NotFinite on select items: NaN"}
    assert ("f1", "select", 10) not in calls


def test_no_finalist_that_can_be_scored_is_a_failure_with_every_reason() -> None:
    score, _ = table({"f1/select": BROKEN, "f2/select": CandidateError("OutOfMemory", "no room")})
    with pytest.raises(
        CandidateError, match=r"no finalist .*finalist 1: NotFinite .*finalist 2: OutOfMemory"
    ) as raised:
        select(task([(1, 0.9), (2, 0.8)]), score)
    assert raised.value.reason == "OutOfMemory"


def test_trouble_with_storage_is_no_failure_of_a_finalist() -> None:
    score, _ = table({"f1/select": StorageError("no answer"), "f2/select": 0.5})
    with pytest.raises(StorageError):
        select(task([(1, 0.9), (2, 0.8)]), score)


def test_models_of_the_pool_are_scored_beside_the_finalists() -> None:
    score, _ = table({"f1/select": 0.7, "red/select": 0.8, "blue/select": BROKEN})
    pool = [Baseline(name=name, role="source", recipe=recipe(name)) for name in ("red", "blue")]
    result = select(task([(1, 0.9)]).model_copy(update={"pool": pool}), score)
    assert [(row.name, row.score) for row in result.pool or ()] == [("red", 0.8)]
    assert result.unscored == {"blue": "NotFinite on select items: NaN"}
    assert result.gain == pytest.approx(-0.1)
    assert not result.gained
