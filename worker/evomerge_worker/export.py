"""The export task: the winner as a Hugging Face checkpoint with its model card."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch

from evomerge_contract.task import ExportTask
from evomerge_worker.digests import file_digest
from evomerge_worker.merge import export_checkpoint
from evomerge_worker.shards import Checkpoint


def export(task: ExportTask, checkpoints: Mapping[str, Checkpoint], device: torch.device) -> dict[str, str]:
    """Write the checkpoint and its card to the task's folder, whole or not at all; digests of the files written.

    `device` is the one that candidates are merged on: another rounds otherwise, and the winner would not be exported.
    """
    # Only one task of a run needs these.
    from evomerge_worker.report.card import merged_sources, model_card
    from evomerge_worker.report.licence import licence_notice

    out = Path(unquote(urlsplit(task.out).path))
    texts = {"README.md": model_card(task.card, task.sources, task.recipe)}
    notice = licence_notice(merged_sources(task.sources, task.recipe))
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
    )
    return {str(f.relative_to(out)): file_digest(f) for f in sorted(out.rglob("*")) if f.is_file()}
