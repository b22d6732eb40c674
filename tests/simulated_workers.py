"""Workers that carry out tasks in simulated time, with made-up scores instead of models."""

import heapq
from collections.abc import Callable
from random import Random
from typing import Any

from documents import prepared
from endings import ending
from evomerge_contract.answers import failure, success
from evomerge_contract.manifest import EvoMerge
from evomerge_contract.report import (
    ConcludeResult,
    EvaluateResult,
    ExportResult,
    PoolRow,
    PrepareResult,
    Report,
    SelectResult,
    SelectRow,
)
from evomerge_contract.task import ConcludeTask, EvaluateTask, ExportTask, PrepareTask, SelectTask, Task
from evomerge_operator.plan.run import BASELINES

Answer = Callable[[Any], Report]
"""What a worker makes of a task."""


class Killed(Exception):
    """The simulated end of the process."""


class SimulatedWorkers:
    """Carries out tasks in simulated time; durations are drawn from `random`."""

    def __init__(self, workers: int, random: Random, answer: Answer, kill_after: int | None = None) -> None:
        self._workers, self._random, self._answer, self._left = workers, random, answer, kill_after
        self._now, self._order = 0.0, 0
        self._running: list[tuple[float, int, Task]] = []
        self.busiest = 0

    @property
    def idle(self) -> int:
        return self._workers - len(self._running)

    def start(self, task: Task) -> None:
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

    def last_words(self) -> str:
        return ""


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


def answer_any(manifest: EvoMerge, alone: dict[str, float] | None = None) -> Callable[[Task], Report]:
    """Answers to every task of a run of this manifest. On select items finalists are the other way round, and models
    alone score what `alone` says, or less than any finalist."""

    def answer(task: Task) -> Report:
        if isinstance(task, PrepareTask):
            return success(task, _found(task, prepared(manifest)))
        if isinstance(task, SelectTask):
            rows = [SelectRow(index=f.index, fitness=f.fitness, score=-f.fitness) for f in task.finalists]
            pool = task.pool and [
                PoolRow(name=model.name, score=(alone or {}).get(model.name, -9)) for model in task.pool
            ]
            return success(task, SelectResult(ranked=sorted(rows, key=lambda row: -row.score), pool=pool))
        if isinstance(task, ConcludeTask):
            winner = task.selected.ranked[0].index if task.selected else task.finalists[0].index
            return success(task, _ending(winner).model_copy(update={"stage": task.stage}))
        if isinstance(task, ExportTask):
            return success(task, ExportResult(out=task.out, files={}))
        return scored(task)

    return answer


def _found(task: PrepareTask, found: PrepareResult) -> PrepareResult:
    """What was found, and the winners of stages beside it, whose contents are made up out of their names."""
    known = {source.name for source in found.sources}
    winners = [
        found.sources[0].model_copy(update={"name": s.name, "digest": "sha256:" + s.name.encode().hex().zfill(64)})
        for s in task.sources
        if s.name not in known
    ]
    return found.model_copy(update={"sources": [*found.sources, *winners]})


def _ending(winner: int) -> ConcludeResult:
    return ending((0.1, 0.2)).model_copy(update={"winner": winner})
