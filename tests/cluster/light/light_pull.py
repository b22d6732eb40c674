"""The light worker's pull. With LIGHT_PULL set, sources and data lie in S3 as a manifest says, and are brought here by
the real store: the cache, the ranged reads, the pins and their words are those of a worker that ships.
"""

import os
from pathlib import Path

from evomerge_contract.manifest import SPLITS, Objective, SplitName
from evomerge_contract.report import PreparedSource, PreparedSplit, PrepareResult
from evomerge_contract.task import ConcludeTask, EvaluateTask, ExportTask, PrepareTask
from evomerge_worker.errors import where_of
from evomerge_worker.store import Store
from evomerge_worker.store.pinned import check_arrived, content_digest, pinned_file, pinned_model


def is_wanted() -> bool:
    """Whether this pod pulls; else sources and data are made up."""
    return bool(os.environ.get("LIGHT_PULL"))


def pulled(task: PrepareTask, made_up: PrepareResult, store: Store) -> PrepareResult:
    """What a prepare task has made up, with the true digests of its sources and data."""
    return made_up.model_copy(
        update={
            "sources": [
                _source(source.uri, found, pinned_model(source, store, code=False))
                for source, found in zip(task.sources, made_up.sources, strict=True)
            ],
            "data": {
                objective.name: {
                    split: _split(task, objective, split, made_up.data[objective.name][split], store)
                    for split in SPLITS
                }
                for objective in task.objectives
            },
        }
    )


def pull(task: EvaluateTask | ConcludeTask | ExportTask, store: Store) -> None:
    """Bring what a task reads, and see that it is what was prepared."""
    for source in task.sources:
        pinned_model(source, store, code=False)
    if isinstance(task, ExportTask):
        return
    splits: tuple[SplitName, ...] = (task.split,) if isinstance(task, EvaluateTask) else ("select", "test")
    for objective in task.objectives:
        for split in splits:
            digest = getattr(task.data[objective.name], split)
            pinned_file(objective.evaluator.uris[split], digest, store, f"objectives.{objective.name}.{split}")


def _source(uri: str, found: PreparedSource, folder: Path) -> PreparedSource:
    check_arrived(uri, folder, where_of(found.name))
    return found.model_copy(update={"digest": content_digest(folder, code=False)})


def _split(
    task: PrepareTask, objective: Objective, split: SplitName, found: PreparedSplit, store: Store
) -> PreparedSplit:
    earlier = getattr((task.data or {}).get(objective.name), split, None)
    where = f"objectives.{objective.name}.{split}"
    _, digest = pinned_file(objective.evaluator.uris[split], earlier, store, where)
    return found.model_copy(update={"digest": digest})
