"""A worker without torch, for tests in which only the operator is on trial.

With arguments it is `evomerge-worker` as it ships, whose session is this file; without any it is that session. Tasks,
reports, notes, storage, metrics and the end by signals are therefore the real thing; the models are made up: a source
is its URI (see light_pull for when it is not), and a recipe's score is a smooth function of its numbers.
"""

import os
import sys
import time
from contextlib import AbstractContextManager

import light_answers
import light_export
import light_faults
import light_pull

from evomerge_contract.answers import Result, success
from evomerge_contract.manifest import SplitName
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import EvaluateResult, ExportResult, ItemScore, Report
from evomerge_contract.task import ConcludeTask, EvaluateTask, ExportTask, PrepareTask, SelectTask, Task
from evomerge_worker import meter
from evomerge_worker.conclude import conclude
from evomerge_worker.evaluate.metrics import aggregate
from evomerge_worker.process import session, supervisor
from evomerge_worker.select import select
from evomerge_worker.size import Size
from evomerge_worker.store import Store, default_cache
from evomerge_worker.store.reports import earlier_report, keep_report


class LightPipeline:
    """Carries out tasks as the real pipeline does, with made-up figures."""

    def __init__(self, reports_at: int) -> None:
        """`reports_at` is the descriptor that the supervisor listens at."""
        self._faults = light_faults.Faults(reports_at)
        self._seconds: dict[str, float] = {}

    def carry_out(self, task: Task) -> Report:
        """The report on `task`, durable before it is returned."""
        started = time.monotonic()
        self._seconds = {}
        store = Store(task.storage, default_cache())
        if not isinstance(task, PrepareTask | ExportTask):
            found = earlier_report(task, store)
            if found is not None:
                return found.model_copy(update={"trace": task.trace})
        with self._phase("pull"):
            self._faults.befall(task)
            if light_pull.is_wanted() and not isinstance(task, PrepareTask):
                light_pull.pull(task, store)
        result = self._result(task, store)
        seconds = self._seconds | {"total": time.monotonic() - started}
        rounded = {phase: round(value, 6) for phase, value in seconds.items()}
        report = success(task, result, seconds=rounded, host=os.uname().nodename)
        keep_report(task, report, store)
        return report

    def _result(self, task: Task, store: Store) -> Result:
        match task:
            case PrepareTask():
                made_up = light_answers.prepare(task, store)
                return light_pull.pulled(task, made_up, store) if light_pull.is_wanted() else made_up
            case EvaluateTask():
                items = self._score(task, task.recipe, task.split)
                scores = {o.name: aggregate(o.metric, items[o.name]) for o in task.objectives}
                return EvaluateResult(scores=scores, items=items)
            case SelectTask():
                return select(task, lambda recipe, split, _: self._score(task, recipe, split))
            case ConcludeTask():
                score = lambda recipe, split, _: self._score(task, recipe, split)  # noqa: E731
                return conclude(task, score, lambda recipe: Size(len(recipe.slices or range(4)), 1_000_000, 900_000))
            case ExportTask():
                return ExportResult(out=task.out, files=light_export.export(task, store))

    def _score(
        self, task: EvaluateTask | SelectTask | ConcludeTask, recipe: Recipe, split: SplitName
    ) -> dict[str, list[ItemScore]]:
        scores = {}
        with self._phase("evaluate"):
            for objective in task.objectives:
                scores[objective.name] = light_answers.score(recipe, objective, split)
                meter.items(len(scores[objective.name]))
        return scores

    def _phase(self, name: str) -> AbstractContextManager[None]:
        return meter.timed(name, self._seconds)


def main() -> None:
    """Be the worker or, without arguments, its session."""
    if sys.argv[1:]:
        light_faults.befall_the_pod(sys.argv[1:])
        supervisor.main(session=(sys.executable, __file__))
    else:
        reports_at = os.dup(1)  # the session then keeps standard output to itself
        session.serve(lambda: LightPipeline(reports_at))


if __name__ == "__main__":
    main()
