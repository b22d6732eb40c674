"""The planner, driven by the real loop of `evomerge run` over simulated workers: any durations, any number of workers
and a kill at any moment give the same candidates, genomes and log, bit for bit."""

import heapq
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from evomerge_operator.prepared import Run, identity, make_run
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from documents import document, prepared, stage
from evomerge_contract.answers import failure
from evomerge_contract.candidate import Candidate
from evomerge_contract.manifest import EvoMerge
from evomerge_contract.methods import METHODS
from evomerge_contract.report import EvaluateResult, Problem, Report
from evomerge_contract.task import ConcludeTask, EvaluateTask, Task, mask_seeds
from evomerge_operator import plan
from evomerge_operator.errors import InputError, RunError, TryAgainError
from evomerge_operator.local.directory import RunDirectory
from evomerge_operator.local.log import RunLog
from evomerge_operator.local.run import search
from evomerge_operator.plan import BASELINES, Key, State

Answer = Callable[[EvaluateTask], Report]


class Killed(Exception):
    """The simulated end of the process."""


class SimulatedWorkers:
    """Carries out tasks in simulated time; durations are drawn from `random`."""

    def __init__(self, workers: int, random: Random, answer: Answer, kill_after: int | None = None) -> None:
        self._workers, self._random, self._answer, self._left = workers, random, answer, kill_after
        self._now, self._order = 0.0, 0
        self._running: list[tuple[float, int, EvaluateTask]] = []
        self.busiest = 0

    @property
    def idle(self) -> int:
        return self._workers - len(self._running)

    def start(self, task: Task) -> None:
        assert isinstance(task, EvaluateTask)
        assert self.idle > 0
        self._order += 1
        duration = self._random.choice([0.1, 1.0, self._random.expovariate(1.0)])
        heapq.heappush(self._running, (self._now + duration, self._order, task))
        self.busiest = max(self.busiest, len(self._running))

    def wait(self) -> list[tuple[Task, Report]]:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise Killed
        self._now, _, task = heapq.heappop(self._running)
        return [(task, self._answer(task))]


class Silent:
    """A watcher that shows nothing."""

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_: None


def quality(task: EvaluateTask) -> float:
    """A smooth score of a recipe: 1 where every weight is 0.75."""
    plain = task.recipe.plain()
    entries = plain.get("models") or [s for part in plain["slices"] for s in part["sources"]]
    values = [v for e in entries for v in _numbers(e.get("parameters") or {})]
    return 1.0 - sum((v - 0.75) ** 2 for v in values) / len(values)


def _numbers(parameters: dict[str, Any]) -> list[float]:
    flat = [f["value"] for v in parameters.values() if isinstance(v, list) for f in v]
    return flat + [v for v in parameters.values() if not isinstance(v, list)]


def scored(task: EvaluateTask) -> Report:
    result = EvaluateResult(scores={"sums": quality(task)})
    return Report(task=task.digest, kind="evaluate", outcome="Succeeded", evaluate=result, seconds={"total": 1.0})


def failing(share: int) -> Answer:
    """About one recipe in `share` fails, always with the same reason."""

    def answer(task: EvaluateTask) -> Report:
        if (task.trace or {})["stage"] != BASELINES and int(task.recipe.digest[-6:], 16) % share == 0:
            return failure(task, "OutOfMemory", "too large")
        return scored(task)

    return answer


def make(algorithm: str = "GA", candidates: int = 30, lag: int = 5, failures: int = 100, **search: Any) -> Run:
    one = stage(groups={"layers": 2}, algorithm=algorithm, candidates=candidates, lag=lag, seed=3, **search)
    manifest = EvoMerge.model_validate(document(stages=[one], budget={"failures": failures}))
    return make_run(manifest, prepared(manifest), "file:///reports")


def run_through(run: Run, folder: Path, workers: SimulatedWorkers) -> dict[Key, Candidate]:
    directory = RunDirectory(folder)
    directory.reports.mkdir(exist_ok=True)
    log = RunLog(directory.log, identity(run.manifest, run.prepared))
    try:
        return search(workers, run, log, directory, Silent())
    finally:
        log.close()


def reference(run: Run, answer: Answer) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        run_through(run, Path(folder), SimulatedWorkers(1, Random(0), answer))
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


def test_no_more_than_lag_candidates_run_at_once(tmp_path: Path) -> None:
    run = make(candidates=40, lag=3)
    finished = {Key(BASELINES, i): _finished(run, Key(BASELINES, i), 0.5) for i in range(3)}
    starts = plan.next_starts(run, State(finished, [], [], {}, set()), slots=10)
    assert [s.key.index for s in starts] == [0, 1, 2]


def _finished(run: Run, key: Key, fitness: float | None, genome: tuple[float, ...] | None = None) -> Candidate:
    return Candidate(
        stage=key.stage,
        index=key.index,
        genome=genome,
        recipe_digest="sha256:" + f"{key.index:064d}",
        algorithm=run.search.version,
        outcome="Failed" if fitness is None else "Succeeded",
        fitness=fitness,
    )


def test_the_log_begins_with_the_baselines_and_follows_the_index(tmp_path: Path) -> None:
    run = make(candidates=10)
    run_through(run, tmp_path, SimulatedWorkers(4, Random(2), scored))
    log = RunLog(tmp_path / "log.jsonl", identity(run.manifest, run.prepared))
    assert [(c.stage, c.index) for c in log.candidates] == [(BASELINES, i) for i in range(3)] + [
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

    finished = run_through(make(candidates=6), tmp_path, SimulatedWorkers(2, Random(0), flaky))
    assert finished[Key("ps", 2)].outcome == "Succeeded"
    assert finished[Key("ps", 2)].attempts == 2
    lost = finished[Key("ps", 4)]
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
    run = make(candidates=30, failures=2)
    with pytest.raises(
        RunError, match=r"3 candidates failed \(3 OutOfMemory\), more than spec\.budget\.failures \(2\)"
    ):
        run_through(run, tmp_path, SimulatedWorkers(1, Random(0), failing(share=1)))


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
    run = make(candidates=10)
    genomes = [tuple(0.1 * k for _ in run.space.genes) for k in range(10)]
    fitness = [0.5, 0.9, None, 0.9, 0.1, 0.9, 0.7, 0.2, 0.8, 0.8]
    finished = {
        Key("ps", k): _finished(run, Key("ps", k), f, g) for k, (f, g) in enumerate(zip(fitness, genomes, strict=True))
    }
    # Candidate 5 has the recipe of candidate 3.
    finished[Key("ps", 5)] = replace_digest(finished[Key("ps", 5)], finished[Key("ps", 3)].recipe_digest)
    assert [(f.index, f.fitness) for f in plan.finalists(run, finished)] == [
        (1, 0.9),
        (3, 0.9),
        (8, 0.8),
        (9, 0.8),
        (6, 0.7),
    ]


def replace_digest(candidate: Candidate, digest: str) -> Candidate:
    return candidate.model_copy(update={"recipe_digest": digest})


def test_no_candidate_that_succeeded_is_said_plainly() -> None:
    run = make(candidates=2)
    finished = {Key("ps", k): _finished(run, Key("ps", k), None, (0.1,) * 8) for k in range(2)}
    with pytest.raises(RunError, match="no candidate succeeded"):
        plan.finalists(run, finished)


def test_a_failed_baseline_is_left_out_of_the_conclusion() -> None:
    run = make(candidates=1)
    finished = {Key(BASELINES, i): _finished(run, Key(BASELINES, i), None if i == 1 else 0.5) for i in range(3)}
    finished[Key("ps", 0)] = _finished(run, Key("ps", 0), 0.5, tuple(0.5 for _ in run.space.genes))
    assert [b.name for b in plan.conclude_task(run, finished).baselines] == ["a", "plain average"]


def test_identity_holds_contents_and_the_search_but_no_places_or_worker_settings() -> None:
    manifest = make().manifest
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
    for choice in ({"tokenizer_source": "union"}, {"chat_template": "auto"}):
        chosen = manifest.model_copy(update={"spec": manifest.spec.model_copy(update=choice)})
        assert identity(chosen, found) != same
    assert not {"tokenizerSource", "chatTemplate"} & same.keys()  # runs from before they were there go on


def test_the_digest_of_a_task_does_not_depend_on_places_limits_or_trace() -> None:
    run = make()
    start = plan.next_starts(run, State({}, [], [], {}, set()), slots=1)[0]
    elsewhere = plan.next_starts(replace(run, report_dir="file:///elsewhere"), State({}, [], [], {}, set()), slots=1)[0]
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
    finished = run_through(make(candidates=4), tmp_path, SimulatedWorkers(1, Random(0), odd(scores)))
    assert [finished[Key("ps", k)].reason for k in range(4)] == [None, reason, None, None]


def test_a_score_that_is_not_finite_cannot_even_be_reported() -> None:
    line = scored(plan.next_starts(make(), State({}, [], [], {}, set()), slots=1)[0].task).line()
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
    run = make(candidates=4)
    run_through(run, tmp_path, SimulatedWorkers(1, Random(0), scored))
    whole = RunLog(tmp_path / "log.jsonl", identity(run.manifest, run.prepared)).candidates
    assert plan.replay_problem(run, whole) is None
    assert plan.replay_problem(run, whole[:4] + whole[5:]) == "holds ps 2 where ps 1 should be"
    newer = [*whole[:-1], whole[-1].model_copy(update={"algorithm": "GA/0"})]
    assert "was begun with GA/0" in (plan.replay_problem(run, newer) or "")
    moved = [*whole[:-1], whole[-1].model_copy(update={"genome": whole[-2].genome})]
    assert "decodes to another recipe" in (plan.replay_problem(run, moved) or "")


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
            make_run(manifest, prepared(manifest), "file:///r")
        assert [p.path for p in raised.value.problems] == [field]


def _concluding(method: str) -> ConcludeTask:
    """The end of a run of one candidate and seed 3, with a base."""
    one = stage(method, candidates=1, seed=3)
    manifest = EvoMerge.model_validate(document(stages=[one], base={"uri": "models/base"}))
    run = make_run(manifest, prepared(manifest), "file:///reports")
    finished = {Key(BASELINES, i): _finished(run, Key(BASELINES, i), 0.5) for i in range(len(run.baselines))}
    finished[Key("ps", 0)] = _finished(run, Key("ps", 0), 0.5, tuple(0.5 for _ in run.space.genes))
    return plan.conclude_task(run, finished)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.random])
def test_finalists_of_a_random_method_are_scored_with_five_mask_seeds(method: str) -> None:
    task = _concluding(method)
    assert (task.mask_seed, task.mask_seeds) == (3, [3, 4, 5, 6, 7])
    assert task.timeout_seconds == (5 + 1 + 5) * 3600


def test_the_seed_after_the_largest_is_the_smallest() -> None:
    assert mask_seeds(2**31 - 2) == [2**31 - 2, 2**31 - 1, 0, 1, 2]


def test_without_masks_the_task_is_what_it_was_before_there_were_mask_seeds() -> None:
    """A run that goes on under a newer version finds the reports of the older one by this digest."""
    task = _concluding("task_arithmetic")
    assert task.mask_seeds is None
    assert task.timeout_seconds == (1 + 1 + 5) * 3600
    assert task.digest == "sha256:f75bd92d69e2428d75267fa9ef9d581cbeef90553d8d647af7b0dbebc6dc31c3"


def test_conclude_may_take_as_long_as_all_its_evaluations() -> None:
    run = make(candidates=1)
    finished = {Key(BASELINES, i): _finished(run, Key(BASELINES, i), 0.5) for i in range(3)}
    finished[Key("ps", 0)] = _finished(run, Key("ps", 0), 0.5, tuple(0.5 for _ in run.space.genes))
    assert plan.conclude_task(run, finished).timeout_seconds == 5 * run.manifest.spec.worker.timeout_seconds
