"""Prepare tasks over folders, for tests: models to damage, data sets to write, and the mistakes that come out."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from evomerge_contract.manifest import Jsonl, Objective, Storage
from evomerge_contract.report import PrepareResult
from evomerge_contract.task import PrepareTask, Source
from evomerge_worker.errors import InputError
from evomerge_worker.prepare import prepare
from evomerge_worker.store import Store

Tiny = Callable[..., Path]
Lines = Sequence[dict[str, Any] | str]
GOOD: dict[str, Lines] = {
    split: [{"prompt": f"{split} {i} + 1 =", "answer": str(i + 1), "skill": "sums"} for i in range(3)]
    for split in ("search", "select", "test")
}


def prepare_folders(
    folders: dict[str, Path],
    data: Path,
    *,
    methods: Sequence[str] = ("linear",),
    flows: Sequence[Sequence[str]] = (),
    tokenizer_source: str | None = None,
    template: str | None = None,
    config_source: str | None = None,
    trust_remote_code: bool = False,
    lines: dict[str, Lines] = GOOD,
    **objective: Any,
) -> PrepareResult:
    """Prepare the models in `folders` (by name) and one objective "sums" whose splits hold `lines`.

    `objective` holds its other fields.
    """
    task = prepare_task_over(
        [Source(name=name, uri=folder.as_uri()) for name, folder in folders.items()], data, lines, **objective
    )
    options: dict[str, Any] = {"methods": list(methods), "trust_remote_code": trust_remote_code}
    options |= {"flows": [list(models) for models in flows], "whole": None if methods else []}
    options |= {"tokenizer_source": tokenizer_source, "chat_template": template, "config_source": config_source}
    store = Store(Storage(), data / "cache", trust_remote_code=trust_remote_code)
    return prepare(task.model_copy(update=options), store)


def prepare_task_over(
    sources: Sequence[Source], data: Path, lines: dict[str, Lines] = GOOD, **objective: Any
) -> PrepareTask:
    """The task of preparing `sources` and one objective "sums" whose splits hold `lines`."""
    objective = {"metric": "exact_match", "max_new_tokens": 8} | objective
    for split, content in lines.items():
        texts = [line if isinstance(line, str) else json.dumps(line) for line in content]
        (data / f"{split}.jsonl").write_text("\n".join(texts))
    jsonl = Jsonl(**{split: (data / f"{split}.jsonl").as_uri() for split in GOOD})
    return PrepareTask(
        sources=list(sources),
        report_dir=(data / "reports").as_uri(),
        objectives=[Objective.model_validate({"name": "sums", "jsonl": jsonl, **objective})],
        methods=["linear"],
    )


def mistakes_of(*args: Any, **options: Any) -> list[tuple[str, str]]:
    """The (path, message) of every mistake that `prepare_folders` finds; none is a list of none."""
    try:
        prepare_folders(*args, **options)
    except InputError as error:
        return [(problem.path, problem.message) for problem in error.problems]
    return []


def changed_config(source: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a model with other values in its config.json; None removes a key."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def changed_weights(source: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a model whose one shard holds what `change` makes of its tensors."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
