"""A run on a cluster from look to look: what follows from what, whatever is lost between two looks."""

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any, TypeVar, cast

import pytest

from begun import begun
from documents import prepared, stage
from evomerge_contract.report import Report, RunReport
from evomerge_contract.task import ConcludeTask, ExportTask, SelectTask, Task
from evomerge_operator.kube.gateway import Gateway
from evomerge_operator.local.log import RunLog
from evomerge_operator.local.search import search
from evomerge_operator.plan.run import BASELINES, identity
from evomerge_operator.planning.pool import TOO_LONG, PlanningError
from evomerge_operator.services.known import Known
from evomerge_operator.services.reconcile import Reconciler
from evomerge_operator.services.settle import BASELINES_KEY, LOCK_KEY
from kube_documents import DEFAULTS, NOW, evomerge, manifest_of
from memory_cluster import MemoryCluster, log_of, run_to_end
from one_look import Cluster, InOneProcess
from simulated_workers import Silent, SimulatedWorkers, answer_any, failing

R = TypeVar("R")
NAMES = ["a", "b", "plain average"]
CANDIDATES = 14


def cluster(algorithm: str = "GA", seed: int = 0, **spec: Any) -> MemoryCluster:
    one = stage(groups={"layers": 2}, algorithm=algorithm, candidates=CANDIDATES, lag=5, seed=3)
    made = evomerge(**{"stages": [one], "parallelism": 4, "worker": {"candidatesPerPod": 2}} | spec)
    any_task = answer_any(manifest_of(made))

    def answer(task: Task) -> Report:
        return failing(share=6)(task) if task.kind == "evaluate" else any_task(task)

    return MemoryCluster(made, answer, seed)


def steps(of: MemoryCluster) -> list[Task]:
    """The tasks that are no candidates."""
    return [task for task in of.tasks if task.kind != "evaluate"]


def begun_before(new: MemoryCluster) -> MemoryCluster:
    """The same run as version 0.1.0 has prepared it: its lock names no baselines."""
    of = cluster()
    of.made["status"] = {"phase": "Searching", "steps": {"prepare": {"succeeded": 1}}}
    [(name, lock)] = [(name, lock) for name, lock in new.config_maps.items() if name.endswith("-lock")]
    of.config_maps[name] = lock | {"data": {LOCK_KEY: lock["data"][LOCK_KEY]}}
    return of


@pytest.mark.parametrize("algorithm", ["GA", "CMA-ES", "SepCMA-ES", "Random"])
def test_restarts_and_the_order_in_which_pods_end_change_no_candidate(algorithm: str) -> None:
    undisturbed = cluster(algorithm)
    assert run_to_end(undisturbed).status.phase == "Succeeded"
    assert len(log_of(undisturbed)) == len(NAMES) + CANDIDATES
    for seed in (1, 2):
        restarted = cluster(algorithm, seed)
        assert run_to_end(restarted, restarts=True).status.phase == "Succeeded"
        assert log_of(restarted) == log_of(undisturbed)
        assert steps(restarted) == steps(undisturbed)


@pytest.mark.parametrize("algorithm", ["GA", "CMA-ES"])
def test_a_cluster_and_one_machine_make_the_same_candidates(algorithm: str, tmp_path: Path) -> None:
    on_cluster = cluster(algorithm)
    run_to_end(on_cluster)
    manifest = manifest_of(on_cluster.made)
    run, proposer = begun(manifest)
    log = RunLog(tmp_path / "log", identity(manifest, prepared(manifest)), NAMES)
    search(SimulatedWorkers(3, Random(0), failing(share=6)), run, proposer, log, deque(), Silent())
    log.close()
    found = RunLog(tmp_path / "log", identity(manifest, prepared(manifest)), NAMES).found
    facts = RunReport.model_validate(on_cluster.facts())
    same = [candidate.identical_part() for candidate in facts.candidates]
    assert same == [candidate.identical_part() for candidate in found if candidate.stage != BASELINES]
    assert [b.identical_part() for b in facts.baselines] == [c.identical_part() for c in found if c.stage == BASELINES]


def test_a_new_run_pins_its_baselines_and_is_selected_from_before_it_is_concluded() -> None:
    of = cluster()
    known = run_to_end(of)
    prepare, select, conclude, export = steps(of)
    assert prepare.kind == "prepare"
    assert isinstance(select, SelectTask)
    assert isinstance(conclude, ConcludeTask)
    assert isinstance(export, ExportTask)
    assert conclude.selected is not None
    assert conclude.finalists == select.finalists
    winner = conclude.selected.ranked[0].index
    assert export.recipe == {f.index: f.recipe for f in select.finalists}[winner]
    assert known.status.conclusion is not None
    assert known.status.conclusion.winner == winner
    assert known.status.selected is None, "it is part of the conclusion by now"
    roles = [d["spec"]["role"] for d in of.candidates.values() if d["spec"]["stage"] == BASELINES]
    assert roles == ["source", "source", "average"]
    assert all("role" not in d["spec"] for d in of.candidates.values() if d["spec"]["stage"] == "ps")
    facts = RunReport.model_validate(of.facts())
    assert (facts.baseline_names, facts.identity) == (NAMES, identity(manifest_of(of.made), facts.prepared))


@pytest.mark.parametrize("restarts", [False, True])
def test_a_run_begun_before_baselines_were_pinned_goes_on_and_is_concluded_by_one_task(restarts: bool) -> None:
    new = cluster()
    run_to_end(new)
    of = begun_before(new)
    known = run_to_end(of, restarts=restarts)
    assert known.status.phase == "Succeeded"
    conclude, export = steps(of)
    assert isinstance(conclude, ConcludeTask)
    assert isinstance(export, ExportTask)
    select = next(task for task in steps(new) if isinstance(task, SelectTask))
    assert conclude.selected is None
    assert conclude.finalists == select.finalists
    assert export.recipe == conclude.finalists[0].recipe
    assert "select" not in known.status.steps
    without_roles = [(n, {k: v for k, v in spec.items() if k != "role"}, s) for n, spec, s in log_of(new)]
    assert log_of(of) == without_roles
    assert RunReport.model_validate(of.facts()).baseline_names is None


def test_a_new_run_names_its_baselines_in_its_lock() -> None:
    of = cluster()
    run_to_end(of)
    [lock] = [lock for name, lock in of.config_maps.items() if name.endswith("-lock")]
    assert lock["data"][BASELINES_KEY] == '["a","b","plain average"]'


def test_a_run_that_another_version_has_begun_with_other_baselines_ends_with_the_reason() -> None:
    new = cluster()
    run_to_end(new)
    of = begun_before(new)
    for lock in of.config_maps.values():
        lock["data"][BASELINES_KEY] = '["a","b","model soup"]'
    known = run_to_end(of)
    assert known.status.phase == "Failed"
    assert known.status.message is not None
    assert known.status.message.startswith(
        'baselines: another version has begun this run: there is no baseline "model soup"; known: a, b, plain average'
    )


class Exceeded(InOneProcess):
    """A pool in which the next calls take too much time."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left, self.calls = times, 0

    async def call(self, caller: str, function: Callable[..., R], *arguments: Any) -> R:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise PlanningError(TOO_LONG, "took more than 15 s of CPU time")
        return await super().call(caller, function, *arguments)


def test_a_search_whose_planning_takes_too_much_waits_longer_each_time_and_says_so() -> None:
    pool, known = Exceeded(2), Known.of(evomerge(suspend=True))
    reconciler = Reconciler(cast(Gateway, Cluster()), DEFAULTS, pool)

    def look(seconds: float) -> tuple[str | None, str | None]:
        known.observed_at = NOW + timedelta(seconds=seconds)
        asyncio.run(reconciler.reconcile(known, known.observed_at))
        return known.status.phase, known.status.reason

    assert look(0) == ("Waiting", "PlanningTooLong")
    assert known.status.message is not None
    assert known.status.message.endswith("another algorithm; it is tried again at 12:00:30 UTC")
    conditions = {c.type: (c.status, c.reason) for c in known.status.conditions}
    assert conditions["Progressing"] == ("False", "PlanningTooLong")
    assert look(29) == ("Waiting", "PlanningTooLong")
    assert pool.calls == 1
    assert look(30) == ("Waiting", "PlanningTooLong")
    assert known.status.message.endswith("it is tried again at 12:01:30 UTC")
    assert (look(89), pool.calls) == (("Waiting", "PlanningTooLong"), 2)
    assert look(90) == ("Suspended", "Suspended")
    assert pool.calls == 3
    assert known.pending is None


def test_an_edit_is_planned_at_once() -> None:
    pool, known = Exceeded(1), Known.of(evomerge(suspend=True))
    reconciler = Reconciler(cast(Gateway, Cluster()), DEFAULTS, pool)
    known.observed_at = NOW
    asyncio.run(reconciler.reconcile(known, NOW))
    known.saw_evomerge(evomerge(suspend=True, generation=2, version=100))
    asyncio.run(reconciler.reconcile(known, NOW + timedelta(seconds=1)))
    assert (known.status.phase, pool.calls) == ("Suspended", 2)
