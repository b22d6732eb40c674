"""The evaluators by metric, and how a session uses them: prepare items once, score every candidate."""

from collections.abc import Callable, Sequence
from typing import Any

from evomerge_contract.manifest import MetricName, Objective
from evomerge_worker.evaluate import choices, exact_match, perplexity
from evomerge_worker.evaluate.items import Item
from evomerge_worker.evaluate.metrics import Scorer
from evomerge_worker.evaluate.prompts import Setup

EVALUATORS: dict[MetricName, Callable[[Any, Objective, Sequence[Item], Setup], Scorer]] = {
    "exact_match": exact_match.prepare,
    "acc": choices.prepare,
    "acc_norm": choices.prepare,
    "perplexity": perplexity.prepare,
}


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
    return EVALUATORS[objective.metric](tokenizer, objective, items, setup)
