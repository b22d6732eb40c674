"""The export task: the winner as a Hugging Face checkpoint with its model card."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from evomerge_contract.task import ExportTask
from evomerge_worker.merge import export_checkpoint
from evomerge_worker.report.card import model_card
from evomerge_worker.shards import Checkpoint


def export(task: ExportTask, checkpoints: Mapping[str, Checkpoint]) -> dict[str, str]:
    """Write the checkpoint and its card to the task's folder, whole or not at all; digests of the files written."""
    out = Path(unquote(urlsplit(task.out).path))
    card = model_card(task.card, task.sources, task.recipe)
    export_checkpoint(
        task.recipe,
        checkpoints,
        out,
        mask_seed=task.mask_seed,
        trust_remote_code=task.trust_remote_code,
        extra_files={"README.md": card},
    )
    return {str(f.relative_to(out)): _digest(f) for f in sorted(out.rglob("*")) if f.is_file()}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
