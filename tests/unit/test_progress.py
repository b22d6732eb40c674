"""What is known of the candidates of a sequence, and which ones start next."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from begun import begun
from documents import document, stage
from evomerge_contract.candidate import Candidate, Genome
from evomerge_contract.manifest import EvoMerge
from evomerge_operator.plan.next import next_keys, too_many_failures
from evomerge_operator.plan.progress import Progress
from evomerge_operator.plan.run import BASELINES, Key, Run

GENOME: Genome = (0.5, 0.25)


def finished(index: int, fitness: float | None = 0.5, stage: str = "ps") -> Candidate:
    return Candidate(
        stage=stage,
        index=index,
        genome=None if stage == BASELINES else GENOME,
        recipe_digest="sha256:" + "0" * 64,
        algorithm="GA/1",
        outcome="Failed" if fitness is None else "Succeeded",
        fitness=fitness,
        scores={} if fitness is None else {"sums": fitness},
    )


def run_of(candidates: int = 30, lag: int = 4, failures: int = 2, *, baselines: bool = True) -> Run:
    """A run without a candidate; `baselines`: those are finished."""
    made = document(stages=[stage(candidates=candidates, lag=lag)], budget={"failures": failures})
    run, _ = begun(EvoMerge.model_validate(made))
    for index in range(len(run.baselines) if baselines else 0):
        run.compared.finish(finished(index, stage=BASELINES))
    return run


def asked(run: Run, count: int) -> None:
    for index in range(run.stage.progress.asked, count):
        run.stage.progress.ask(index, GENOME)


def end(run: Run, *indices: int, fitness: float | None = 0.5) -> None:
    for index in indices:
        run.stage.progress.finish(finished(index, fitness))


def indices(keys: Sequence[Key]) -> list[int]:
    assert {key.stage for key in keys} <= {"ps"}
    return [key.index for key in keys]


@given(st.permutations(range(9)), st.frozensets(st.integers(0, 8)), st.integers(0, 9))
def test_in_whatever_order_candidates_finish_the_leading_ones_are_the_same(
    order: list[int], failed: frozenset[int], count: int
) -> None:
    progress = Progress()
    for index in order[:count]:
        progress.finish(finished(index, None if index in failed else 0.5))
    there = set(order[:count])
    leading = next(index for index in range(10) if index not in there)
    assert progress.leading == leading
    assert progress.leading_failures == len(failed & set(range(leading)))
    assert [c.index for c in progress.failed] == sorted(failed & there)


def test_genomes_are_kept_of_candidates_that_are_not_finished_and_of_no_others() -> None:
    progress = Progress()
    for index in range(3):
        progress.ask(index, (index / 10, 0.0))
    progress.failures[1] = 1
    progress.finish(finished(1))
    assert progress.genomes == {0: (0.0, 0.0), 2: (0.2, 0.0)}
    assert progress.finished[1].genome is None
    assert progress.failures == {}
    assert progress.asked == 3


def test_what_was_found_in_a_log_is_not_told_again_and_what_is_new_is_told_in_its_order() -> None:
    progress = Progress()
    progress.finish(finished(0), told=True)
    progress.finish(finished(2, 0.75))
    progress.finish(finished(1, None))
    assert progress.untold == [(2, {"sums": 0.75}), (1, None)]


def test_the_best_is_the_highest_fitness_and_none_while_nothing_succeeded() -> None:
    progress = Progress()
    progress.finish(finished(0, None))
    assert progress.best() is None
    progress.finish(finished(1, -3.0))
    progress.finish(finished(2, -4.0))
    assert progress.best() == -3.0


def test_baselines_come_first_and_once() -> None:
    run = run_of(baselines=False)
    run.compared.finish(finished(1, stage=BASELINES))
    keys = next_keys(run, {Key(BASELINES, 0)}, 3)
    assert keys == [Key(BASELINES, 2), Key("ps", 0), Key("ps", 1)]


@pytest.mark.parametrize(("lag", "finished_ones", "expected"), [(4, 0, 4), (4, 1, 5), (1, 0, 1), (1, 7, 8), (9, 3, 12)])
def test_a_genome_is_asked_for_once_the_outcomes_up_to_lag_before_it_are_there(
    lag: int, finished_ones: int, expected: int
) -> None:
    run = run_of(lag=lag)
    asked(run, finished_ones)
    end(run, *range(finished_ones))
    assert indices(next_keys(run, set(), 100)) == list(range(finished_ones, expected))


def test_an_outcome_that_is_missing_holds_back_those_that_depend_on_it_and_no_later_outcome_helps() -> None:
    run = run_of(lag=4)
    asked(run, 4)
    end(run, 1, 2, 3)
    assert indices(next_keys(run, {Key("ps", 0)}, 100)) == []
    end(run, 0)
    assert indices(next_keys(run, set(), 100)) == [4, 5, 6, 7]


def test_one_that_was_asked_for_is_started_again_though_the_lag_would_not_let_it_be_asked() -> None:
    """A log from a search with more in flight, or one whose earlier candidate is tried once more."""
    run = run_of(lag=2)
    asked(run, 6)
    end(run, 1, 3)
    assert indices(next_keys(run, {Key("ps", 2)}, 100)) == [0, 4, 5]


def test_no_more_start_than_slots_and_the_budget_has_an_end() -> None:
    run = run_of(candidates=6, lag=9)
    assert indices(next_keys(run, set(), 2)) == [0, 1]
    assert indices(next_keys(run, {Key("ps", 0), Key("ps", 3)}, 3)) == [1, 2, 4]
    assert next_keys(run, set(), 0) == next_keys(run, set(), -1) == []
    asked(run, 6)
    end(run, *range(6))
    assert run.stage.complete
    assert run.searched
    assert next_keys(run, set(), 9) == []


def test_only_failures_before_which_all_are_finished_count_against_the_budget() -> None:
    """So that a search ends at the same candidate however many run at once."""
    run = run_of(lag=9, failures=2)
    asked(run, 8)
    end(run, 1, 2, 3, 4, fitness=None)
    assert not too_many_failures(run)
    assert indices(next_keys(run, set(), 3)) == [0, 5, 6]
    end(run, 0)
    assert run.stage.progress.leading_failures == 4
    assert too_many_failures(run)
    assert next_keys(run, set(), 3) == []


def test_as_many_failures_as_the_budget_are_allowed_and_those_of_baselines_do_not_count() -> None:
    run = run_of(lag=9, failures=2, baselines=False)
    for index in range(3):
        run.compared.finish(finished(index, None, stage=BASELINES))
    asked(run, 3)
    end(run, 0, 1, fitness=None)
    assert not too_many_failures(run)
    end(run, 2, fitness=None)
    assert too_many_failures(run)
