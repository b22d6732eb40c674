"""Scoring items once, for tests; a session prepares them once and scores many models."""

from collections.abc import Sequence
from typing import Any

from evomerge_contract.manifest import Objective
from evomerge_contract.report import ItemScore
from evomerge_worker.evaluate.evaluators import prepare_items
from evomerge_worker.evaluate.items import Item
from evomerge_worker.evaluate.prompts import context_of


def score_items(
    model: Any, tokenizer: Any, objective: Objective, items: Sequence[Item], batch_size: int
) -> list[ItemScore]:
    """`prepare_items` and its scorer."""
    return prepare_items(tokenizer, objective, items, batch_size, context=context_of(model))(model)
