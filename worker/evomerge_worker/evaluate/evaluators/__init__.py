"""The evaluators: a file each, that bears the name of its field in an objective and holds `read` and `prepare`.

A session prepares the items of a split once and scores every candidate with them.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from evomerge_contract.manifest import Objective
from evomerge_worker.errors import InputError
from evomerge_worker.evaluate.items import Item, problems_of
from evomerge_worker.evaluate.metrics import Scorer
from evomerge_worker.evaluate.prompts import Setup


class _Module(Protocol):
    def read(self, path: Path, objective: Objective) -> tuple[list[Item], list[str]]:
        """The good items of a split's file, and what is wrong with the others, by line."""

    def prepare(self, tokenizer: Any, objective: Objective, items: Sequence[Item], setup: Setup) -> Scorer:
        """Everything about items that `read` gave that no candidate changes; the scorer keeps their order."""


def _module_of(objective: Objective) -> _Module:
    return cast(_Module, import_module(f"{__name__}.{objective.evaluator_name}"))


def read_items(path: Path, objective: Objective) -> tuple[list[Item], list[str]]:
    """The good items of a split's file, and what is wrong with it (no items, an item twice included), by line."""
    return _module_of(objective).read(path, objective)


def load_items(path: Path, objective: Objective, where: str) -> list[Item]:
    """The items of a split's file; `where` is the path of problems: `objectives.<name>.<split>`.

    Raises:
        InputError: all that is wrong with the file, up to 20 mistakes one by one.
    """
    items, mistakes = read_items(path, objective)
    if mistakes:
        raise InputError(*problems_of(mistakes, where))
    return items


def prepare_items(
    tokenizer: Any,
    objective: Objective,
    items: Sequence[Item],
    batch_size: int,
    *,
    context: int | None = None,
    where: str | None = None,
) -> Scorer:
    """Everything about the items that no candidate changes, done once: tokens, batches, positions.

    The scorer depends on the tokenizer, objective, items and batch size; a session keeps it as long as those stay.
    `context` is the model's longest input (`context_of`), None unbounded; `where` is the path of problems.

    Raises:
        InputError: items that this tokenizer or a model of this context cannot take, by line.
    """
    setup = Setup(batch_size, context, where if where is not None else f"objectives.{objective.name}")
    return _module_of(objective).prepare(tokenizer, objective, items, setup)
