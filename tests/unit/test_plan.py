"""The planner, driven by the real loop of `evomerge run` over simulated workers: any durations, any number of workers
and a kill at any moment give the same candidates, genomes and log, bit for bit."""

import math
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from begun import begun
from documents import document, prepared, stage
from evomerge_contract.answers import failure
from evomerge_contract.candidate import Candidate, Genome
from evomerge_contract.manifest import EvoMerge
from evomerge_contract.methods import METHODS
from evomerge_contract.report import EvaluateResult, Problem, Report, SelectResult, SelectRow
from evomerge_contract.task import ConcludeTask, EvaluateTask, SelectTask, mask_seeds
from evomerge_operator.errors import InputError, RunError, TryAgainError
from evomerge_operator.local.log import RunLog
from evomerge_operator.local.search import search
from evomerge_operator.plan.finish import conclude_task, finalists, scored_baselines, select_task
from evomerge_operator.plan.next import next_keys
from evomerge_operator.plan.proposer import Proposer, Start
from evomerge_operator.plan.run import BASELINES, Key, Run, default_names, identity
from simulated_workers import Answer, Killed, Silent, SimulatedWorkers, failing, scored


def make(
    algorithm: str = "GA", candidates: int = 30, lag: int = 5, failures: int = 100, **search: Any
) -> tuple[Run, Proposer]:
    one = stage(groups={"layers": 2}, algorithm=algorithm, candidates=candidates, lag=lag, seed=3, **search)
    manifest = EvoMerge.model_validate(document(stages=[one], budget={"failures": failures}))
    return begun(manifest)


def run_through(made: tuple[Run, Proposer], folder: Path, workers: SimulatedWorkers) -> Run:
    """Search in the directory `folder`, from what its log holds."""
    run, proposer = made
    log = open_log(run, folder)
    try:
        search(workers, run, proposer, log, deque(log.found), Silent())
    finally:
        log.close()
    return run


def open_log(run: Run, folder: Path) -> RunLog:
    return RunLog(folder / "log.jsonl", identity(run.manifest, run.prepared), default_names(run.manifest, run.prepared))


def reference(made: tuple[Run, Proposer], answer: Answer) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        run_through(made, Path(folder), SimulatedWorkers(1, Random(0), answer))
        return (Path(folder) / "log.jsonl").read_bytes()


@pytest.mark.parametrize("algorithm", ["GA", "CMA-ES", "SepCMA-ES", "Random"])
@settings(max_examples=12, deadline=None)
@given(
    workers=st.sampled_from([1, 2, 4, 9]),
    durations=st.integers(0, 10_000),
    kills=st.lists(st.integers(0, 40), max_size=3),
)
def test_durations_workers_and_kills_do_not_change_the_log(
    algorithm: str, workers: int, durations: int, kills: list[int]
) -> None:
    answer = failing(share=6)
    random = Random(durations)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kill in kills:
            try:
                run_through(make(algorithm), folder, SimulatedWorkers(workers, random, answer, kill_after=kill))
            except Killed:
                continue
        run_through(make(algorithm), folder, SimulatedWorkers(workers, random, answer))
        assert (folder / "log.jsonl").read_bytes() == reference(make(algorithm), answer)


def test_every_slot_is_used_while_a_genome_can_be_asked(tmp_path: Path) -> None:
    workers = SimulatedWorkers(4, Random(1), scored)
    run_through(make(candidates=40, lag=8), tmp_path, workers)
    assert workers.busiest == 4


def test_no_more_than_lag_candidates_run_at_once() -> None:
    run, _ = make(candidates=40, lag=3)
    finish(run, BASELINES, [0.5] * 3)
    assert [key.index for key in next_keys(run, set(), slots=10)] == [0, 1, 2]


def _finished(run: Run, key: Key, fitness: float | None, genome: Genome | None = None) -> Candidate:
    return Candidate(
        stage=key.stage,
        index=key.index,
        genome=genome,
        recipe_digest="sha256:" + f"{key.index:064d}",
        algorithm=run.stage.version,
        outcome="Failed" if fitness is None else "Succeeded",
        fitness=fitness,
        scores={} if fitness is None else {"sums": fitness},
    )


def finish(run: Run, stage: str, fitness: Sequence[float | None]) -> None:
    """The first candidates of a sequence are finished with these fitnesses; None: failed."""
    for index, value in enumerate(fitness):
        run.progress(stage).finish(_finished(run, Key(stage, index), value))


def first_start(made: tuple[Run, Proposer]) -> Start:
    run, proposer = made
    [start] = proposer.starts(next_keys(run, set(), slots=1), {})
    return start


def test_the_log_begins_with_the_baselines_and_follows_the_index(tmp_path: Path) -> None:
    run = run_through(make(candidates=10), tmp_path, SimulatedWorkers(4, Random(2), scored))
    assert [(c.stage, c.index) for c in open_log(run, tmp_path).found] == [(BASELINES, i) for i in range(3)] + [
        ("ps", k) for k in range(10)
    ]


def test_a_failure_is_tried_once_more_and_then_stands(tmp_path: Path) -> None:
    tries: dict[str, int] = {}

    def flaky(task: EvaluateTask) -> Report:
        index = (task.trace or {})["index"] if (task.trace or {})["stage"] == "ps" else -1
        if index not in (2, 4):
            return scored(task)
        tries[task.digest] = tries.get(task.digest, 0) + 1
        if index == 2 and tries[task.digest] == 2:
            return scored(task)
        return failure(task, "Crashed", "signal 9")

    run = run_through(make(candidates=6), tmp_path, SimulatedWorkers(2, Random(0), flaky))
    finished = run.stage.progress.finished
    assert finished[2].outcome == "Succeeded"
    assert finished[2].attempts == 2
    lost = finished[4]
    assert (lost.outcome, lost.reason, lost.message, lost.fitness) == ("Failed", "Crashed", "signal 9", None)


def test_a_score_that_is_not_finite_fails_at_once(tmp_path: Path) -> None:
    asked: list[int] = []

    def answer(task: EvaluateTask) -> Report:
        if (task.trace or {})["stage"] == "ps" and (task.trace or {})["index"] == 1:
            asked.append(1)
            return failure(task, "NotFinite", "nan")
        return scored(task)

    run_through(make(candidates=4), tmp_path, SimulatedWorkers(1, Random(0), answer))
    assert asked == [1]


def test_more_failures_than_the_budget_end_the_run_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"3 candidates failed \(3 OutOfMemory\), more than spec\.budget\.failures \(2\)"
    ):
        run_through(make(candidates=30, failures=2), tmp_path, SimulatedWorkers(1, Random(0), failing(share=1)))


def test_wrong_input_ends_the_run_and_storage_that_is_away_asks_to_try_again(tmp_path: Path) -> None:
    def wrong(task: EvaluateTask) -> Report:
        problem = Problem(path="models.b", message="tensor x has another shape")
        return failure(task, "InvalidInput", "models.b: …").model_copy(update={"problems": [problem]})

    with pytest.raises(InputError) as raised:
        run_through(make(), tmp_path, SimulatedWorkers(1, Random(0), wrong))
    assert raised.value.problems == [Problem(path="spec.models[1].uri", message="tensor x has another shape")]
    with pytest.raises(TryAgainError, match="the same command goes on later"):
        run_through(make(), tmp_path, SimulatedWorkers(1, Random(0), lambda t: failure(t, "TryAgain", "no answer")))


def test_finalists_are_the_best_five_different_recipes_and_ties_go_to_the_earlier() -> None:
    run, proposer = make(candidates=10)
    finish(run, "ps", [0.5, 0.9, None, 0.9, 0.1, 0.9, 0.7, 0.2, 0.8, 0.8])
    finished = run.stage.progress.finished
    # Candidate 5 has the recipe of candidate 3.
    finished[5] = finished[5].model_copy(update={"recipe_digest": finished[3].recipe_digest})
    chosen = finalists(proposer, run.stage.progress.results)
    assert chosen == [1, 3, 8, 9, 6]
    genomes = [tuple(0.1 * index for _ in run.stage.genes) for index in range(10)]
    candidates = [finished[i].model_copy(update={"genome": genomes[i]}) for i in chosen]
    task = select_task(proposer, candidates)
    assert [(f.index, f.fitness) for f in task.finalists] == [(1, 0.9), (3, 0.9), (8, 0.8), (9, 0.8), (6, 0.7)]
    assert [f.recipe for f in task.finalists] == [proposer.space.decode(genomes[i]) for i in chosen]
    assert conclude_task(proposer, candidates, None, []).finalists == task.finalists


def test_no_candidate_that_succeeded_is_said_plainly() -> None:
    run, proposer = make(candidates=2)
    finish(run, "ps", [None, None])
    with pytest.raises(RunError, match="no candidate succeeded"):
        finalists(proposer, run.stage.progress.results)


def test_a_failed_baseline_is_left_out_of_the_conclusion() -> None:
    made = make(candidates=1)
    finish(made[0], BASELINES, [0.5, None, 0.5])
    assert [b.name for b in concluded(made, None).baselines] == ["a", "plain average"]


def concluded(made: tuple[Run, Proposer], selected: SelectResult | None) -> ConcludeTask:
    """The end of a run whose only finalist is candidate 0."""
    run, proposer = made
    chosen = [_finished(run, Key("ps", 0), 0.5, tuple(0.5 for _ in run.stage.genes))]
    return conclude_task(proposer, chosen, selected, scored_baselines(run))


def test_identity_holds_contents_and_the_search_but_no_places_or_worker_settings() -> None:
    manifest = make()[0].manifest
    moved = manifest.spec.model_copy(
        update={
            "models": [m.model_copy(update={"uri": "s3://elsewhere/x"}) for m in manifest.spec.models],
            "parallelism": 7,
        }
    )
    found = prepared(manifest)
    same = identity(manifest.model_copy(update={"spec": moved}), found)
    assert same == identity(manifest, found)
    faster = manifest.spec.evaluation.model_copy(update={"threads": 2})
    other = manifest.model_copy(update={"spec": manifest.spec.model_copy(update={"evaluation": faster})})
    assert identity(other, found) != same
    united = manifest.model_copy(update={"spec": manifest.spec.model_copy(update={"tokenizer_source": "union"})})
    assert identity(united, found) != same
    assert "tokenizerSource" not in same  # runs from before it was there go on


def test_the_digest_of_a_task_does_not_depend_on_places_limits_or_trace() -> None:
    start = first_start(make())
    elsewhere = first_start(begun(make()[0].manifest, report_dir="file:///elsewhere"))
    assert elsewhere.task.report_dir != start.task.report_dir
    assert start.task.digest == elsewhere.task.digest
    assert start.task.model_copy(update={"batch_size": 7}).digest != start.task.digest


def odd(scores: dict[str, float]) -> Answer:
    """The report on candidate 1 has these scores."""

    def answer(task: EvaluateTask) -> Report:
        report = scored(task)
        if (task.trace or {})["stage"] != "ps" or (task.trace or {})["index"] != 1:
            return report
        return report.model_copy(update={"evaluate": EvaluateResult.model_construct(scores=scores, items={})})

    return answer


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({}, "Garbage"),
        ({"other": 0.5}, "Garbage"),
        ({"sums": math.inf}, "NotFinite"),
        ({"sums": math.nan}, "NotFinite"),
    ],
)
def test_a_report_that_makes_no_sense_costs_its_candidate_only(
    scores: dict[str, float], reason: str, tmp_path: Path
) -> None:
    run = run_through(make(candidates=4), tmp_path, SimulatedWorkers(1, Random(0), odd(scores)))
    assert [run.stage.progress.finished[k].reason for k in range(4)] == [None, reason, None, None]


def test_a_score_that_is_not_finite_cannot_even_be_reported() -> None:
    line = scored(first_start(make()).task).line()
    for bad in ("NaN", "1e999"):
        number = line.split('"sums":')[1].split("}")[0]
        with pytest.raises(ValidationError):
            Report.model_validate_json(line.replace(number, bad))


def test_another_order_of_models_is_another_run() -> None:
    doc = document()
    one = EvoMerge.model_validate(doc)
    doc["spec"]["models"].reverse()
    other = EvoMerge.model_validate(doc)
    # The same names with the same contents, the other way round.
    digests = {s.name: s.digest for s in prepared(one).sources}
    found = prepared(other)
    found = found.model_copy(
        update={"sources": [s.model_copy(update={"digest": digests[s.name]}) for s in found.sources]}
    )
    assert identity(one, prepared(one)) != identity(other, found)


def test_a_log_with_a_hole_or_of_another_algorithm_is_refused(tmp_path: Path) -> None:
    run = run_through(make(candidates=4), tmp_path, SimulatedWorkers(1, Random(0), scored))
    whole = open_log(run, tmp_path).found
    assert problem_of(whole, tmp_path) == ""
    assert "log.jsonl holds ps 2 where ps 1 should be; restore it" in problem_of(whole[:4] + whole[5:], tmp_path)
    newer = [*whole[:-1], whole[-1].model_copy(update={"algorithm": "GA/0"})]
    assert "log.jsonl was begun with GA/0" in problem_of(newer, tmp_path)
    moved = [*whole[:-1], whole[-1].model_copy(update={"genome": whole[-2].genome})]
    assert "decodes to another recipe" in problem_of(moved, tmp_path)


def problem_of(candidates: Sequence[Candidate], folder: Path) -> str:
    """Why a search does not go on from these lines of its log; nothing where it does."""
    run, proposer = make(candidates=4)
    log = open_log(run, folder)
    before = log.path.read_bytes()
    try:
        search(SimulatedWorkers(1, Random(0), scored), run, proposer, log, deque(candidates), Silent())
    except RunError as error:
        return str(error)
    finally:
        log.close()
        assert log.path.read_bytes() == before
    return ""


def test_a_run_whose_sources_all_fail_ends_at_once_with_their_reasons(tmp_path: Path) -> None:
    def answer(task: EvaluateTask) -> Report:
        return failure(task, "OutOfMemory", "too large") if (task.trace or {})["stage"] == BASELINES else scored(task)

    with pytest.raises(RunError, match=r"no source alone could be evaluated: a: OutOfMemory \(too large\); b: Out"):
        run_through(make(), tmp_path, SimulatedWorkers(1, Random(0), answer))


def test_a_space_or_search_that_does_not_fit_the_models_is_wrong_input_with_its_field() -> None:
    for one, field in [
        (stage(groups={"layers": 5}), "spec.stages[0].parameterSpace.groups"),
        (stage(algorithm="SepCMA-ES", population=4096), "spec.stages[0].search"),
    ]:
        manifest = EvoMerge.model_validate(document(stages=[one]))
        with pytest.raises(InputError) as raised:
            begun(manifest)
        assert [p.path for p in raised.value.problems] == [field]


def _chosen(method: str, *, pinned: bool = True) -> tuple[Run, Proposer]:
    """A run of one candidate and seed 3, with a base, whose baselines are scored."""
    one = stage(method, candidates=1, seed=3)
    made = begun(EvoMerge.model_validate(document(stages=[one], base={"uri": "models/base"})), pinned=pinned)
    finish(made[0], BASELINES, [0.5] * len(made[0].baselines))
    return made


def _selected(made: tuple[Run, Proposer]) -> SelectTask:
    run, proposer = made
    return select_task(proposer, [_finished(run, Key("ps", 0), 0.5, tuple(0.5 for _ in run.stage.genes))])


SELECTED = SelectResult(ranked=[SelectRow(index=0, fitness=0.5, score=0.5)])


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.random])
def test_finalists_of_a_random_method_are_scored_with_five_mask_seeds(method: str) -> None:
    task = _selected(_chosen(method))
    assert (task.mask_seed, task.mask_seeds) == (3, [3, 4, 5, 6, 7])
    assert task.timeout_seconds == 5 * 3600
    alone = concluded(_chosen(method, pinned=False), None)
    assert (alone.mask_seed, alone.mask_seeds) == (3, [3, 4, 5, 6, 7])
    assert alone.timeout_seconds == (5 + 1 + 5) * 3600


def test_the_test_items_are_scored_with_the_seed_that_is_exported_alone() -> None:
    task = concluded(_chosen("dare_ties"), SELECTED)
    assert (task.selected, task.mask_seed, task.mask_seeds) == (SELECTED, 3, None)


def test_the_seed_after_the_largest_is_the_smallest() -> None:
    assert mask_seeds(2**31 - 2) == [2**31 - 2, 2**31 - 1, 0, 1, 2]


def test_without_masks_the_task_is_what_it_was_before_there_were_mask_seeds() -> None:
    """A run that goes on under a newer version finds the reports of the older one by this digest."""
    task = concluded(_chosen("task_arithmetic", pinned=False), None)
    assert task.mask_seeds is None
    assert task.timeout_seconds == (1 + 1 + 5) * 3600
    assert task.digest == "sha256:f75bd92d69e2428d75267fa9ef9d581cbeef90553d8d647af7b0dbebc6dc31c3"


def test_select_and_conclude_may_take_as_long_as_all_their_evaluations() -> None:
    made = make(candidates=1)
    finish(made[0], BASELINES, [0.5] * 3)
    each = made[0].manifest.spec.worker.timeout_seconds
    assert _selected(made).timeout_seconds == each
    assert concluded(made, SELECTED).timeout_seconds == concluded(made, None).timeout_seconds == 5 * each
