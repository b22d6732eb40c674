"""Items: what all evaluators' have in common, and how they are compared between splits."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from evomerge_contract.manifest import SPLITS, SplitName
from evomerge_contract.report import Problem

MOST_PROBLEMS = 20
"""So many mistakes of one split are told one by one."""


class Item(Protocol):
    """One item of a split, at `line` of its file."""

    @property
    def line(self) -> int:
        """Counted from 1."""

    @property
    def skill(self) -> str | None:
        """What it asks for, where the data set says so."""

    @property
    def identity(self) -> tuple[str, ...]:
        """What makes two items the same, in one split or in two."""


def overlap(objectives: Mapping[str, Mapping[SplitName, Sequence[Item]]]) -> list[Problem]:
    """A problem for every pair of different splits that share items, within an objective or between two.

    `objectives` holds the splits by the objective's name. What is searched on may neither choose nor judge the winner,
    whichever objective it counts for; between objectives, one split may share items.
    """
    lines = {
        (name, split): {item.identity: item.line for item in items}
        for name, splits in objectives.items()
        for split, items in splits.items()
    }
    problems = []
    for name, splits in objectives.items():
        for split, items in splits.items():
            for (other, earlier), theirs in lines.items():
                if SPLITS.index(earlier) < SPLITS.index(split):
                    of = "" if other == name else f" of objective {other}"
                    problems += _shared(items, theirs, f"{earlier} split{of}", f"objectives.{name}.{split}")
    return problems


def _shared(items: Sequence[Item], lines: Mapping[tuple[str, ...], int], other: str, where: str) -> list[Problem]:
    """One problem that tells which of `items` are among `lines`, or none."""
    shared = [(item.line, lines[item.identity]) for item in items if item.identity in lines]
    if not shared:
        return []
    told = ", ".join(f"line {mine} (line {theirs} there)" for mine, theirs in shared[:MOST_PROBLEMS])
    rest = f" and {len(shared) - MOST_PROBLEMS} more" if len(shared) > MOST_PROBLEMS else ""
    message = f"also in the {other}: {told}{rest}; splits must be disjoint, remove the items from one"
    return [Problem(path=where, message=message)]


def problems_of(mistakes: Sequence[str], where: str) -> list[Problem]:
    """The first 20 mistakes as problems at `where`, and how many more there are."""
    told = list(mistakes[:MOST_PROBLEMS])
    if len(mistakes) > MOST_PROBLEMS:
        told.append(f"… and {len(mistakes) - MOST_PROBLEMS} more mistakes")
    return [Problem(path=where, message=message) for message in told]
