"""Data sets: every item read and checked, splits compared, contents pinned."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from evomerge_contract.manifest import SPLITS, Objective, SplitName
from evomerge_contract.report import PreparedSplit
from evomerge_worker.digests import file_digest
from evomerge_worker.evaluate.items import Item, load_items, overlap
from evomerge_worker.prepare.mistakes import Mistakes
from evomerge_worker.store import Store


def prepare_data(
    objectives: Sequence[Objective], store: Store, mistakes: Mistakes
) -> dict[str, dict[SplitName, PreparedSplit]]:
    """The splits of every objective by its name, with digest, number of items and items per skill."""
    prepared: dict[str, dict[SplitName, PreparedSplit]] = {}
    for objective in objectives:
        where = f"objectives.{objective.name}"
        items: dict[SplitName, list[Item]] = {}
        splits: dict[SplitName, PreparedSplit] = {}
        for split in SPLITS:
            with mistakes.collected():
                path = store.file(getattr(objective.jsonl, split), where=f"{where}.{split}")
                items[split] = load_items(path, objective, f"{where}.{split}")
                splits[split] = _prepared(path, items[split])
        mistakes.found += overlap(items, where)
        prepared[objective.name] = splits
    return prepared


def _prepared(path: Path, items: Sequence[Item]) -> PreparedSplit:
    skills = Counter(item.skill for item in items if item.skill is not None)
    return PreparedSplit(digest=file_digest(path), items=len(items), skills=dict(sorted(skills.items())))
