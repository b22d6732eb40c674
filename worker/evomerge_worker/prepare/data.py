"""Data sets: every item read and checked, splits compared, contents pinned."""

from collections import Counter
from collections.abc import Mapping, Sequence

from evomerge_contract.manifest import SPLITS, Objective, SplitName
from evomerge_contract.report import PreparedSplit
from evomerge_contract.task import DataDigests
from evomerge_worker.evaluate.evaluators import read_items
from evomerge_worker.evaluate.items import Item, overlap, problems_of
from evomerge_worker.prepare.mistakes import Mistakes
from evomerge_worker.prepare.reading import Reader
from evomerge_worker.store import Store
from evomerge_worker.store.pinned import pinned_file


def prepare_data(
    objectives: Sequence[Objective],
    data: Mapping[str, DataDigests],
    store: Store,
    mistakes: Mistakes,
    reader: Reader | None,
) -> dict[str, dict[SplitName, PreparedSplit]]:
    """The splits of every objective by its name, with digest, number of items and items per skill.

    Those that `data` pins must be what they were. Good items of a split with mistakes are still compared and checked.
    Without a `reader` only the text is.
    """
    items: dict[str, dict[SplitName, list[Item]]] = {}
    prepared: dict[str, dict[SplitName, PreparedSplit]] = {}
    for objective in objectives:
        where = f"objectives.{objective.name}"
        items[objective.name] = {}
        prepared[objective.name] = {}
        for split in SPLITS:
            with mistakes.collected():
                pinned = getattr(data.get(objective.name), split, None)
                path, digest = pinned_file(objective.evaluator.uris[split], pinned, store, f"{where}.{split}")
                found, wrong = read_items(path, objective)
                mistakes.found += problems_of(wrong, f"{where}.{split}")
                items[objective.name][split] = found
                prepared[objective.name][split] = _prepared(digest, found)
                if found and reader is not None:
                    reader.check(objective, found, f"{where}.{split}")
    mistakes.found += overlap(items)
    return prepared


def _prepared(digest: str, items: Sequence[Item]) -> PreparedSplit:
    skills = Counter(item.skill for item in items if item.skill is not None)
    return PreparedSplit(digest=digest, items=len(items), skills=dict(sorted(skills.items())))
