"""jsonl: items are lines of JSON; an objective's metric says which fields they have and how a model is asked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from evomerge_contract.manifest import Objective
from evomerge_contract.metrics import MetricName
from evomerge_worker.evaluate import choices, exact_match, perplexity
from evomerge_worker.evaluate.items import Item
from evomerge_worker.evaluate.lines import Fields, read_lines
from evomerge_worker.evaluate.metrics import Scorer
from evomerge_worker.evaluate.prompts import Setup


class _Kind(Protocol):
    """A kind of items, a module: it makes an item of a line, and a scorer of items."""

    def item(self, line: int, fields: Fields) -> Item: ...

    def prepare(self, tokenizer: Any, objective: Objective, items: Sequence[Any], setup: Setup) -> Scorer: ...


_KINDS: dict[MetricName, _Kind] = {
    "exact_match": exact_match,
    "acc": choices,
    "acc_norm": choices,
    "perplexity": perplexity,
}


def read(path: Path, objective: Objective) -> tuple[list[Item], list[str]]:
    """The good items of a file (UTF-8; blank lines are skipped, unknown fields ignored), and what is wrong with it."""
    return read_lines(path, _KINDS[objective.metric].item)


def prepare(tokenizer: Any, objective: Objective, items: Sequence[Item], setup: Setup) -> Scorer:
    """Tokenise the items and lay out their batches."""
    return _KINDS[objective.metric].prepare(tokenizer, objective, items, setup)
