"""A source: pulled, opened, checked by itself, and pinned."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evomerge_contract.report import PreparedSource, Problem
from evomerge_contract.task import Source
from evomerge_worker.errors import InputError, where_of
from evomerge_worker.prepare.config import read_config, unread_companions
from evomerge_worker.prepare.mistakes import Mistakes
from evomerge_worker.prepare.vocabulary import check_rows, read_vocabulary
from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.dtypes import NAMES
from evomerge_worker.sources import source_folder
from evomerge_worker.store import Store, with_commits
from evomerge_worker.store.files import path_of
from evomerge_worker.store.pinned import check_arrived, content_digest

_SHOWN = 3


@dataclass(frozen=True)
class Opened:
    """What could be read of a source; None is what could not, for a reason that has been collected.

    A `checkpoint` may have mistakes that do not keep it from being compared with others.
    """

    name: str
    config: Any = None  # a transformers configuration
    checkpoint: Checkpoint | None = None
    vocabulary: dict[str, int] | None = None  # token to id; None also if another of the tokenizer's files is broken

    @property
    def where(self) -> str:
        """The path of problems with this source."""
        return where_of(self.name)

    @property
    def layers(self) -> int | None:
        """How many layers it has, by its tensors or, where these cannot be told, by its configuration."""
        if self.checkpoint is not None:
            return self.checkpoint.layout.layers
        said = None if self.config is None else getattr(self.config.get_text_config(), "num_hidden_layers", None)
        return said if isinstance(said, int) else None


def open_source(source: Source, store: Store, mistakes: Mistakes, *, code: bool) -> Opened:
    """Pull a source and read its configuration, its shards' headers and its vocabulary. `code`: its code is trusted."""
    where = where_of(source.name)
    folder: Path | None = None
    config = checkpoint = vocabulary = None
    with mistakes.collected():
        _check_cache_folder(source.uri, where)
        source = with_commits(source, where)
        folder = source_folder(source, store, code=code)
        check_arrived(source.uri, folder, where)
    if folder is None:
        return Opened(source.name)
    with mistakes.collected():
        opened, problems = Checkpoint.look(folder, source.name)
        mistakes.found += problems
        _ = opened and opened.layout  # raises for a model without layers
        checkpoint = opened
    with mistakes.collected():
        config = read_config(folder, where, code=code)
    unread = unread_companions(folder, where)
    mistakes.found += unread
    with mistakes.collected():
        vocabulary = read_vocabulary(folder, where, code=code)
    if config is not None and vocabulary is not None:
        mistakes.found += check_rows(vocabulary, config, where)
    tokens = None if unread or vocabulary is None else vocabulary.tokens
    return Opened(source.name, config, checkpoint, tokens)


def _check_cache_folder(uri: str, where: str) -> None:
    """Refuse a model's folder in the cache of the Hugging Face hub, which holds one of each commit further down.

    Raises:
        InputError: it is one.
    """
    if not uri.startswith("file:"):
        return
    folder = path_of(uri, where)
    commits = [path.parent.name for path in folder.glob("snapshots/*/config.json")]
    if commits and not (folder / "config.json").exists():
        message = f"{uri} is a folder of the Hugging Face cache; name the model inside it: snapshots/{min(commits)}"
        raise InputError.at(where, message)


def pin(checkpoint: Checkpoint, digest: str | None, *, code: bool) -> PreparedSource:
    """A source without mistakes, as found; the digest of its content is taken where it is not known."""
    elements: Counter[torch.dtype] = Counter()
    for name in checkpoint.names:
        if checkpoint.dtype(name).is_floating_point:
            elements[checkpoint.dtype(name)] += math.prod(checkpoint.shape(name))
    return PreparedSource(
        name=checkpoint.name,
        digest=digest or content_digest(checkpoint.folder, code=code),
        bytes=checkpoint.bytes,
        dtype=NAMES[elements.most_common(1)[0][0]],
        parameters=elements.total(),
    )


def check_finite(checkpoint: Checkpoint) -> None:
    """Look at every weight.

    Raises:
        InputError: weights that are NaN or infinite, by tensor.
    """
    if broken := list(checkpoint.not_finite()):
        shown = ", ".join(broken[:_SHOWN])
        more = f" and {len(broken) - _SHOWN} more tensors" if len(broken) > _SHOWN else ""
        message = f"{shown}{more} hold{'s' if len(broken) == 1 else ''} NaN or infinity: the model is damaged"
        raise InputError(Problem(path=where_of(checkpoint.name), message=message))
