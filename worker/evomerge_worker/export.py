"""The export task: the winner as a Hugging Face checkpoint with its model card, and the run's records beside it."""

import gzip
import math
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from pydantic import ValidationError

from evomerge_contract.base import canonical_json
from evomerge_contract.log import LOG_NAME, first_entry, log_line
from evomerge_contract.report import EXPORT_MARK, RunReport
from evomerge_contract.task import ExportTask
from evomerge_worker.digests import file_digest
from evomerge_worker.errors import InputError
from evomerge_worker.merge import export_checkpoint, plan_merge
from evomerge_worker.merge.statistics_cache import Statistics
from evomerge_worker.merge.vocabulary import Vocabularies
from evomerge_worker.shards import Checkpoint
from evomerge_worker.store import Store
from evomerge_worker.store.cache import scratch_folder
from evomerge_worker.store.files import path_of
from evomerge_worker.store.store import scheme_of

_WHERE = "export"
_BESIDES_WEIGHTS = 256 << 20  # bytes of tokenizer, log, report


def export(
    task: ExportTask, store: Store, open_sources: Callable[[], Mapping[str, Checkpoint]], device: torch.device
) -> dict[str, str]:
    """Write the checkpoint, its card and the run's records to the task's place, then remove what the task says; digests
    of the files written.

    A complete export of the same task that is found in S3 is returned. `device` is the one that candidates are merged
    on: another rounds otherwise, and the winner would not be exported.

    Raises:
        InputError: the place holds something that no export wrote, or is none; the facts are damaged.
        CandidateError: the merged weights are not finite.
        StorageError: a disk or server failed or refused.
    """
    files = _export(task, store, open_sources, device)
    for uri in task.drop or ():
        _drop(uri, store)
    return files


def _drop(uri: str, store: Store) -> None:
    """Remove what an export wrote to `uri`."""
    if scheme_of(uri, _WHERE) == "s3":
        from evomerge_worker.store.s3_export import drop_export

        drop_export(store.s3, uri)
    elif (folder := path_of(uri, _WHERE)) and (folder / EXPORT_MARK).exists():
        shutil.rmtree(folder)


def _export(
    task: ExportTask, store: Store, open_sources: Callable[[], Mapping[str, Checkpoint]], device: torch.device
) -> dict[str, str]:
    """Write the checkpoint and what goes beside it; digests of the files written."""
    match scheme_of(task.out, _WHERE):
        case "file":
            out = path_of(task.out, _WHERE)
            _write(task, open_sources(), out, device, store.cache)
            return {str(f.relative_to(out)): file_digest(f) for f in sorted(out.rglob("*")) if f.is_file()}
        case "s3":
            from evomerge_worker.store.s3_export import earlier_export, put_export

            found = earlier_export(store.s3, task.out, task.digest)
            if found is not None:
                return found
            checkpoints = open_sources()
            with scratch_folder(store.cache, _bytes(task, checkpoints)) as scratch:
                _write(task, checkpoints, scratch / "model", device, store.cache)
                return put_export(store.s3, task.out, task.digest, scratch / "model")
        case _:
            raise InputError.at(_WHERE, f"{task.out}: a model cannot be written to hf://; export to s3:// or file://")


def _write(
    task: ExportTask, checkpoints: Mapping[str, Checkpoint], out: Path, device: torch.device, cache: Path
) -> None:
    """Write all files to the folder `out`, whole or not at all. `cache` may know statistics of the sources."""
    # Only one task of a run needs these.
    from evomerge_worker.report.card import merged_sources, model_card
    from evomerge_worker.report.licence import licence_notice

    card = {} if task.card is None else {"README.md": model_card(task.card, task.sources, task.recipe)}
    texts = card | _records(task)
    earlier = task.card.earlier if task.card is not None else None
    notice = licence_notice(merged_sources(task.sources, task.recipe, earlier))
    if notice is not None:
        texts["LICENSE"] = notice
    export_checkpoint(
        task.recipe,
        checkpoints,
        out,
        mask_seed=task.mask_seed,
        trust_remote_code=task.trust_remote_code,
        extra_files=texts,
        device=device,
        statistics=Statistics(cache),
    )


def _records(task: ExportTask) -> dict[str, str]:
    """The run's records by file name: what the report shows as JSON, the search log, the report, the recipe."""
    texts = {} if task.recipe_text is None else {"recipe.yaml": task.recipe_text}
    if task.facts is None:
        return texts
    from evomerge_worker.report import render

    facts = read_facts(Path(task.facts))
    begun = first_entry(facts.identity, facts.baseline_names)
    entries = [begun, *({"candidate": c.wire()} for c in [*facts.baselines, *facts.candidates])]
    log = b"".join(log_line(entry) for entry in entries).decode()
    return texts | {"run.json": canonical_json(facts.wire()), LOG_NAME: log, "report.html": render(facts)}


def read_facts(folder: Path) -> RunReport:
    """The run report in the files of `folder`: in the order of their names they are one gzip stream of its JSON.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        # What begins with a dot is Kubernetes' own: the links by which it changes a mounted ConfigMap at once.
        parts = sorted(path for path in folder.iterdir() if path.name[0] != "." and path.is_file())
        return RunReport.model_validate_json(gzip.decompress(b"".join(part.read_bytes() for part in parts)))
    except (OSError, EOFError, zlib.error, ValidationError) as error:
        message = f"the run's facts in {folder} cannot be read: {str(error).partition(chr(10))[0]}"
        raise InputError.at("facts", message) from error


def _bytes(task: ExportTask, checkpoints: Mapping[str, Checkpoint]) -> int:
    """An upper bound of what the export takes on a disk."""
    size = _BESIDES_WEIGHTS
    checkpoints = Vocabularies(trust_remote_code=task.trust_remote_code).aligned(task.recipe, checkpoints)
    for plan in plan_merge(task.recipe, checkpoints):
        size += math.prod(checkpoints[plan.like.model].shape(plan.like.tensor)) * plan.dtype.itemsize
    return size
