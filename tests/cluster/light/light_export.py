"""The light worker's export: small files in the place of a checkpoint, and all else as a real export has it."""

import gzip
import hashlib
from pathlib import Path

from evomerge_contract.base import canonical_json
from evomerge_contract.log import LOG_NAME, first_entry, log_line
from evomerge_contract.report import EXPORT_MARK, RunReport
from evomerge_contract.task import ExportTask
from evomerge_worker.store import Store
from evomerge_worker.store.s3 import listing, split_prefix


def export(task: ExportTask, store: Store) -> dict[str, str]:
    """Write the files to the task's folder, the one that says that it is complete as the last; their digests."""
    files = _files(task)
    for name, content in files.items():
        store.write(f"{task.out.rstrip('/')}/{name}", content, where="export")
    manifest = {name: {"size": len(content), "sha256": _sha256(content)} for name, content in files.items()}
    mark = canonical_json({"files": manifest}).encode()
    store.write(f"{task.out.rstrip('/')}/{EXPORT_MARK}", mark, where="export")
    for uri in task.drop or ():
        _drop(uri, store)
    return {name: f"sha256:{_sha256(content)}" for name, content in (files | {EXPORT_MARK: mark}).items()}


def _drop(uri: str, store: Store) -> None:
    bucket, prefix = split_prefix(uri, "export")
    for name in listing(store.s3, bucket, prefix, deep=True):
        store.s3.delete_object(Bucket=bucket, Key=prefix + name)


def _files(task: ExportTask) -> dict[str, bytes]:
    recipe = task.recipe_text or canonical_json(task.recipe.plain())
    files = {
        "config.json": b"{}\n",
        "model.safetensors": canonical_json(task.recipe.plain()).encode(),
        "recipe.yaml": recipe.encode(),
    }
    if task.card is not None:
        files["README.md"] = f"# {task.card.run}\n".encode()
    return files if task.facts is None else files | _run_files(Path(task.facts))


def _run_files(folder: Path) -> dict[str, bytes]:
    """Log, page and facts of the run, from the parts of one gzip stream."""
    parts = sorted(path for path in folder.iterdir() if path.is_file())
    content = gzip.decompress(b"".join(path.read_bytes() for path in parts))
    facts = RunReport.model_validate_json(content)
    begun = first_entry(facts.identity, facts.baseline_names)
    log = [begun, *({"candidate": c.wire()} for c in (*facts.baselines, *facts.candidates))]
    return {
        LOG_NAME: b"".join(map(log_line, log)),
        "report.html": f"<!doctype html><title>{facts.run}</title>\n".encode(),
        "run.json": content,
    }


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
