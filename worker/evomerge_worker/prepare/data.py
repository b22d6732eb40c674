"""Data sets: every item read and checked, splits compared, contents pinned."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from evomerge_contract.manifest import SPLITS, Objective, SplitName
from evomerge_contract.report import PreparedSplit
from evomerge_worker.digests import file_digest
from evomerge_worker.evaluate.items import Item, overlap, problems_of, read_items
from evomerge_worker.prepare.mistakes import Mistakes
from evomerge_worker.prepare.reading import Reader
from evomerge_worker.store import Store


def prepare_data(
    objectives: Sequence[Objective], store: Store, mistakes: Mistakes, reader: Reader | None
) -> dict[str, dict[SplitName, PreparedSplit]]:
    """The splits of every objective by its name, with digest, number of items and items per skill.

    Good items of a split with mistakes are still compared and checked. Without a `reader` only the text is.
    """
    items: dict[str, dict[SplitName, list[Item]]] = {}
    prepared: dict[str, dict[SplitName, PreparedSplit]] = {}
    for objective in objectives:
        where = f"objectives.{objective.name}"
        items[objective.name] = {}
        prepared[objective.name] = {}
        for split in SPLITS:
            with mistakes.collected():
                path = store.file(getattr(objective.jsonl, split), where=f"{where}.{split}")
                found, wrong = read_items(path, objective)
                mistakes.found += problems_of(wrong, f"{where}.{split}")
                items[objective.name][split] = found
                prepared[objective.name][split] = _prepared(path, found)
                if found and reader is not None:
                    reader.check(objective, found, f"{where}.{split}")
    mistakes.found += overlap(items)
    return prepared


def _prepared(path: Path, items: Sequence[Item]) -> PreparedSplit:
    skills = Counter(item.skill for item in items if item.skill is not None)
    return PreparedSplit(digest=file_digest(path), items=len(items), skills=dict(sorted(skills.items())))
