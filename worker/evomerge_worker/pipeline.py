"""task -> pull -> merge -> evaluate -> report: what a session does with each of the five kinds of task."""

import os
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from evomerge_contract.answers import Result, success
from evomerge_contract.base import canonical_json
from evomerge_contract.manifest import Objective, SplitName, without_uris
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import EvaluateResult, ExportResult, ItemScore, Report
from evomerge_contract.task import ConcludeTask, EvaluateTask, ExportTask, PrepareTask, SelectTask, Source, Task
from evomerge_worker import meter
from evomerge_worker.conclude import conclude
from evomerge_worker.errors import CandidateError, out_of_memory
from evomerge_worker.evaluate.evaluators import load_items, prepare_items
from evomerge_worker.evaluate.metrics import Scorer, aggregate
from evomerge_worker.evaluate.prompts import context_of
from evomerge_worker.export import export
from evomerge_worker.families.live import LiveModel
from evomerge_worker.prepare import prepare
from evomerge_worker.select import select
from evomerge_worker.shards import Checkpoint
from evomerge_worker.size import size_of
from evomerge_worker.sources import source_folder
from evomerge_worker.store import Store
from evomerge_worker.store.pinned import pinned_file
from evomerge_worker.store.reports import earlier_report, keep_report

ScoringTask = EvaluateTask | SelectTask | ConcludeTask
"""A task that scores recipes."""


class Pipeline:
    """Carries out tasks; keeps the sources mapped, the model live and the items tokenised between them."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._checkpoints: dict[tuple[str, str, str | None, str | None], Checkpoint] = {}
        self._stores: dict[tuple[str, bool], Store] = {}
        self._live: LiveModel | None = None
        self._tokenizer: Any = None  # whose tokens the scorers hold
        self._scorers: dict[tuple[str, int, str], Scorer] = {}
        self._seconds: dict[str, float] = {}

    def carry_out(self, task: Task) -> Report:
        """The report on `task`, durable before it is returned.

        Raises:
            WorkerError: with the reason that the failure report is to bear.
        """
        started = time.monotonic()
        if not isinstance(task, PrepareTask | ExportTask):
            found = earlier_report(task, self._store(task))
            if found is not None:
                return found.model_copy(update={"trace": task.trace})
        self._seconds = {}
        torch.set_num_threads(task.threads)
        result = self._result(task)
        seconds = self._seconds | {"total": time.monotonic() - started}
        rounded = {phase: round(value, 6) for phase, value in seconds.items()}
        report = success(task, result, seconds=rounded, host=os.uname().nodename)
        keep_report(task, report, self._store(task))
        return report

    def _result(self, task: Task) -> Result:
        match task:
            case PrepareTask():
                return prepare(task, self._store(task))
            case EvaluateTask():
                items = self._score(task, task.recipe, task.split, task.mask_seed)
                scores = {o.name: aggregate(o.metric, items[o.name]) for o in task.objectives}
                return EvaluateResult(scores=scores, items=items)
            case SelectTask():
                return select(task, lambda recipe, split, seed: self._score(task, recipe, split, seed))
            case ConcludeTask():
                return conclude(
                    task,
                    lambda recipe, split, seed: self._score(task, recipe, split, seed),
                    lambda recipe: size_of(recipe, self._open(task), trust_remote_code=task.trust_remote_code),
                )
            case ExportTask():
                files = export(task, self._store(task), lambda: self._open(task), self._device)
                return ExportResult(out=task.out, files=files)

    def _score(self, task: ScoringTask, recipe: Recipe, split: SplitName, mask_seed: int) -> dict[str, list[ItemScore]]:
        """Merge `recipe`, its masks drawn from `mask_seed`, into the live model and score it on a split, item by item.

        Raises:
            CandidateError: it cannot be scored, memory that does not suffice included.
        """
        try:
            return self._merge_and_score(task, recipe, split, mask_seed)
        except (MemoryError, RuntimeError) as error:
            if out_of_memory(error):
                raise CandidateError("OutOfMemory", " ".join(str(error).split())[:500]) from error
            raise

    def _merge_and_score(
        self, task: ScoringTask, recipe: Recipe, split: SplitName, mask_seed: int
    ) -> dict[str, list[ItemScore]]:
        checkpoints = self._open(task)
        with self._phase("load"):
            live = self._live_model(task)
            live.open_for(recipe, checkpoints)
        with self._phase("merge"):
            live.merge(recipe, checkpoints, mask_seed)
        scores = {}
        for objective in task.objectives:
            with self._phase("load"):
                scorer = self._scorer(task, objective, split, live)
            with self._phase("evaluate"):
                scores[objective.name] = scorer(live.model)
        return scores

    def _live_model(self, task: Task) -> LiveModel:
        """The one live model of the session."""
        if self._live is None:
            self._live = LiveModel(self._device, trust_remote_code=task.trust_remote_code, cache=self._cache)
        return self._live

    def _scorer(self, task: ScoringTask, objective: Objective, split: SplitName, live: LiveModel) -> Scorer:
        """The items of a split, read, checked and tokenised once for as long as the tokenizer stays."""
        if self._tokenizer is not live.tokenizer:
            self._scorers.clear()
            self._tokenizer = live.tokenizer
        digest = getattr(task.data[objective.name], split)
        key = (digest, task.batch_size, canonical_json(without_uris(objective.wire())))
        if key not in self._scorers:
            where = f"objectives.{objective.name}.{split}"
            path, _ = pinned_file(objective.evaluator.uris[split], digest, self._store(task), where)
            items = load_items(path, objective, where)
            self._scorers[key] = prepare_items(
                live.tokenizer, objective, items, task.batch_size, context=context_of(live.model), where=where
            )
        return self._scorers[key]

    def _open(self, task: Task) -> dict[str, Checkpoint]:
        """Every source of the task, pulled, checked against its digest and mapped once per session."""
        with self._phase("pull"):
            return {source.name: self._checkpoint(task, source) for source in task.sources}

    def _checkpoint(self, task: Task, source: Source) -> Checkpoint:
        key = (source.name, source.uri, source.adapter, source.digest)
        if key not in self._checkpoints:
            folder = source_folder(source, self._store(task), code=task.trust_remote_code)
            self._checkpoints[key] = Checkpoint.open(folder, source.name, source.digest)
        return self._checkpoints[key]

    def _store(self, task: Task) -> Store:
        """One store for tasks with the same settings: making an S3 client takes as long as a tiny candidate."""
        key = (task.storage.model_dump_json(), task.trust_remote_code)
        if key not in self._stores:
            self._stores[key] = Store(task.storage, self._cache, trust_remote_code=task.trust_remote_code)
        return self._stores[key]

    def _phase(self, name: str) -> AbstractContextManager[None]:
        return meter.timed(name, self._seconds)
