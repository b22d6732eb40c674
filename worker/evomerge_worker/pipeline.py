"""task -> pull -> merge -> evaluate -> report: what a session does with each of the four kinds of task."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
from pydantic import ValidationError

from evomerge_contract.manifest import BASE, Objective, SplitName
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import EvaluateResult, ExportResult, ItemScore, Report
from evomerge_contract.task import ConcludeTask, EvaluateTask, ExportTask, PrepareTask, Source, Task
from evomerge_worker.conclude import conclude
from evomerge_worker.digests import file_digest
from evomerge_worker.durable import write_durably
from evomerge_worker.errors import CandidateError, InputError, out_of_memory
from evomerge_worker.evaluate.evaluators import prepare_items
from evomerge_worker.evaluate.items import load_items
from evomerge_worker.evaluate.metrics import Scorer, aggregate
from evomerge_worker.evaluate.prompts import context_of
from evomerge_worker.export import export
from evomerge_worker.families.live import LiveModel
from evomerge_worker.merge import anchor_of
from evomerge_worker.prepare import content_digest, prepare
from evomerge_worker.shards import Checkpoint
from evomerge_worker.store import Store

_CHANGED = "its content is not what it was when the run was prepared; restore it, or start a new run"


class Pipeline:
    """Carries out tasks; keeps the sources mapped, the model live and the items tokenised between them."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._checkpoints: dict[tuple[str, str, str | None], Checkpoint] = {}
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
            found = _earlier_report(task)
            if found is not None:
                return found.model_copy(update={"trace": task.trace})
        self._seconds = {}
        torch.set_num_threads(task.threads)
        report = self._report(task)
        seconds = self._seconds | {"total": time.monotonic() - started}
        report = report.model_copy(update={"seconds": {k: round(v, 6) for k, v in seconds.items()}})
        write_durably(_report_path(task), report.model_dump_json(exclude_none=True, by_alias=True).encode())
        return report

    def _report(self, task: Task) -> Report:
        report = Report(
            task=task.digest, kind=task.kind, outcome="Succeeded", host=os.uname().nodename, trace=task.trace
        )
        match task:
            case PrepareTask():
                return report.model_copy(update={"prepare": prepare(task, self._store(task))})
            case EvaluateTask():
                items = self._score(task, task.recipe, task.split)
                scores = {o.name: aggregate(o.metric, items[o.name]) for o in task.objectives}
                return report.model_copy(update={"evaluate": EvaluateResult(scores=scores, items=items)})
            case ConcludeTask():
                result = conclude(task, lambda recipe, split: self._score(task, recipe, split))
                return report.model_copy(update={"conclude": result})
            case ExportTask():
                files = export(task, self._open(task), self._device)
                return report.model_copy(update={"export": ExportResult(out=task.out, files=files)})

    def _score(self, task: EvaluateTask | ConcludeTask, recipe: Recipe, split: SplitName) -> dict[str, list[ItemScore]]:
        """Merge `recipe` into the live model and score it on a split, item by item.

        Raises:
            CandidateError: it cannot be scored, memory that does not suffice included.
        """
        try:
            return self._merge_and_score(task, recipe, split)
        except (MemoryError, RuntimeError) as error:
            if out_of_memory(error):
                raise CandidateError("OutOfMemory", " ".join(str(error).split())[:500]) from error
            raise

    def _merge_and_score(
        self, task: EvaluateTask | ConcludeTask, recipe: Recipe, split: SplitName
    ) -> dict[str, list[ItemScore]]:
        checkpoints = self._open(task)
        with self._phase("load"):
            live = self._live_model(task, checkpoints[anchor_of(recipe)])
        with self._phase("merge"):
            live.merge(recipe, checkpoints, task.mask_seed)
        scores = {}
        for objective in task.objectives:
            with self._phase("load"):
                scorer = self._scorer(task, objective, split, live)
            with self._phase("evaluate"):
                scores[objective.name] = scorer(live.model)
        return scores

    def _live_model(self, task: Task, first: Checkpoint) -> LiveModel:
        """The one live model of the session, begun with the checkpoint `first`."""
        if self._live is None:
            self._live = LiveModel.open(first, device=self._device, trust_remote_code=task.trust_remote_code)
        return self._live

    def _scorer(
        self, task: EvaluateTask | ConcludeTask, objective: Objective, split: SplitName, live: LiveModel
    ) -> Scorer:
        """The items of a split, read, checked and tokenised once for as long as the tokenizer stays."""
        if self._tokenizer is not live.tokenizer:
            self._scorers.clear()
            self._tokenizer = live.tokenizer
        digest = getattr(task.data[objective.name], split)
        key = (digest, task.batch_size, objective.model_dump_json(exclude={"jsonl", "weight"}))
        if key not in self._scorers:
            where = f"objectives.{objective.name}.{split}"
            path = self._store(task).file(getattr(objective.jsonl, split), where=where)
            if file_digest(path) != digest:
                raise InputError.at(where, _CHANGED)
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
        key = (source.name, source.uri, source.digest)
        if key not in self._checkpoints:
            where = BASE if source.name == BASE else f"models.{source.name}"
            folder = self._store(task).model(source.uri, where=where)
            if source.digest is not None and content_digest(folder, code=task.trust_remote_code) != source.digest:
                raise InputError.at(where, _CHANGED)
            self._checkpoints[key] = Checkpoint.open(folder, source.name)
        return self._checkpoints[key]

    def _store(self, task: Task) -> Store:
        return Store(task.storage, self._cache, trust_remote_code=task.trust_remote_code)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - started


def _report_path(task: Task) -> Path:
    folder = Path(unquote(urlsplit(task.report_dir).path))
    return folder / f"{task.digest.removeprefix('sha256:')}.json"


def _earlier_report(task: Task) -> Report | None:
    """The durable report of the same task, if one was written before."""
    try:
        return Report.model_validate_json(_report_path(task).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
