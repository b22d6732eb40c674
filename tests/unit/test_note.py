"""The note of a worker pod: what comes back of a task's result through a termination message."""

import random

import pytest

from evomerge_contract.manifest import Jsonl, Objective
from evomerge_contract.note import NOTE_BYTES, read_note, write_note
from evomerge_contract.recipe import Recipe, RecipeModel
from evomerge_contract.report import Report, SelectResult, SelectRow
from evomerge_contract.task import Finalist, SelectTask

FINALISTS, MASKS = 5, 5
LONG_REASON = "OutOfMemory on select items: " + "DefaultCPUAllocator: can't allocate memory: you tried to " * 9


def select_task() -> SelectTask:
    recipe = Recipe(merge_method="linear", models=[RecipeModel(model="red")])
    return SelectTask(
        finalists=[Finalist(index=i, fitness=0.5, recipe=recipe) for i in range(FINALISTS)],
        mask_seeds=list(range(MASKS)),
        sources=[],
        report_dir="file:///tmp",
        objectives=[Objective(name="o", jsonl=Jsonl(search="a", select="b", test="c"), metric="acc")],
        data={},
    )


def select_result(scored: int) -> SelectResult:
    """Figures that use every digit, of the first `scored` finalists; a long reason for each of the others."""
    rng = random.Random(7)
    rows = [
        SelectRow(
            index=99_990 + i,
            fitness=rng.random(),
            score=rng.random(),
            mask_scores=[rng.random() for _ in range(MASKS)],
            spread=rng.random(),
        )
        for i in range(scored)
    ]
    unscored = {f"finalist {99_990 + i}": f"{LONG_REASON}{rng.random()}"[:500] for i in range(scored, FINALISTS)}
    return SelectResult(ranked=rows, unscored=unscored, mask_seeds=[2**31 - 1 - i for i in range(MASKS)])


@pytest.mark.parametrize("scored", [1, 3, 5])
def test_a_selection_of_five_finalists_under_five_masks_fits_and_comes_back_whole(scored: int) -> None:
    task, result = select_task(), select_result(scored)
    report = Report(task=task.digest, kind="select", outcome="Succeeded", select=result, seconds={"total": 1.5})
    note = write_note([task], [report])
    assert len(note.encode()) <= NOTE_BYTES
    assert read_note(note, [task]) == [report]
