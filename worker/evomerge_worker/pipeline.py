"""task -> pull -> merge -> evaluate -> report: what a session does with each of the four kinds of task."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch
from pydantic import ValidationError

from evomerge_contract.manifest import SplitName
from evomerge_contract.recipe import Recipe
from evomerge_contract.task import (
    ConcludeTask,
    EvaluateResult,
    EvaluateTask,
    ExportResult,
    ExportTask,
    ItemScore,
    PrepareTask,
    Report,
    Source,
    Task,
)
from evomerge_worker.conclude import conclude
from evomerge_worker.durable import write_durably
from evomerge_worker.errors import InputError
from evomerge_worker.evaluate import PreparedItems, aggregate, load_items, prepare_items, score_prepared
from evomerge_worker.export import export
from evomerge_worker.families.live import LiveModel
from evomerge_worker.merge import plan_merge
from evomerge_worker.prepare import prepare
from evomerge_worker.shards import Checkpoint
from evomerge_worker.store import Store


class Pipeline:
    """Carries out tasks; keeps the sources mapped, the model live and the items tokenised between them."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._checkpoints: dict[str, Checkpoint] = {}  # by URI and digest
        self._live: tuple[str, LiveModel] | None = None
        self._items: dict[tuple[str, ...], PreparedItems] = {}
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
                files = export(task, self._open(task))
                return report.model_copy(update={"export": ExportResult(out=task.out, files=files)})

    def _score(self, task: EvaluateTask | ConcludeTask, recipe: Recipe, split: SplitName) -> dict[str, list[ItemScore]]:
        """Merge `recipe` into the live model and score it on a split, item by item."""
        checkpoints = self._open(task)
        with self._phase("load"):
            live = self._live_model(task, recipe, checkpoints)
        with self._phase("merge"):
            live.merge(plan_merge(recipe, checkpoints), checkpoints, mask_seed=task.mask_seed)
        scores = {}
        for objective in task.objectives:
            with self._phase("load"):
                items = self._prepared_items(task, objective.name, split, live)
            with self._phase("evaluate"):
                scores[objective.name] = score_prepared(live.model, items, task.batch_size)
        return scores

    def _live_model(self, task: Task, recipe: Recipe, checkpoints: dict[str, Checkpoint]) -> LiveModel:
        """The live model with the configuration and tokenizer that the recipe's result has."""
        name = template_of(recipe)
        source = next(s for s in task.sources if s.name == name)
        key = f"{source.digest or source.uri} {task.trust_remote_code}"
        if self._live is None or self._live[0] != key:
            self._live = None  # never two models in memory
            self._items.clear()
            self._live = (
                key,
                LiveModel.open(checkpoints[name], device=self._device, trust_remote_code=task.trust_remote_code),
            )
        return self._live[1]

    def _prepared_items(
        self, task: EvaluateTask | ConcludeTask, name: str, split: SplitName, live: LiveModel
    ) -> PreparedItems:
        objective = next(o for o in task.objectives if o.name == name)
        digest = getattr(task.data[name], split)
        key = (digest, objective.model_dump_json(exclude={"jsonl", "weight"}))
        if key not in self._items:
            path = self._store(task).file(getattr(objective.jsonl, split))
            items = load_items(path, objective, f"objectives.{name}.{split}")
            self._items[key] = prepare_items(live.tokenizer, objective, items)
        return self._items[key]

    def _open(self, task: Task) -> dict[str, Checkpoint]:
        """Every source of the task, pulled and mapped once per session."""
        with self._phase("pull"):
            opened = {}
            for source in task.sources:
                key = f"{source.uri} {source.digest}"
                if key not in self._checkpoints:
                    self._checkpoints[key] = self._open_one(task, source)
                opened[source.name] = self._checkpoints[key]
            return opened

    def _open_one(self, task: Task, source: Source) -> Checkpoint:
        return Checkpoint.open(self._store(task).model(source.uri), source.name)

    def _store(self, task: Task) -> Store:
        return Store(task.storage, self._cache, trust_remote_code=task.trust_remote_code)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - started


def template_of(recipe: Recipe) -> str:
    """The source whose configuration and tokenizer the result takes: the base model, or else the first model."""
    if recipe.base_model is not None:
        return recipe.base_model
    if recipe.models:
        return recipe.models[0].model
    if recipe.slices:
        return recipe.slices[0].sources[0].model
    raise InputError.at("recipe", "names no model: give models or slices")


def _report_path(task: Task) -> Path:
    folder = Path(unquote(urlsplit(task.report_dir).path))
    return folder / f"{task.digest.removeprefix('sha256:')}.json"


def _earlier_report(task: Task) -> Report | None:
    """The durable report of the same task, if one was written before."""
    try:
        return Report.model_validate_json(_report_path(task).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
