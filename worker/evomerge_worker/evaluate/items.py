"""Items: the lines of a data set, read, checked and compared between splits."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge_contract.manifest import SPLITS, MetricName, Objective, SplitName
from evomerge_contract.report import Problem
from evomerge_worker.errors import InputError

MOST_PROBLEMS = 20
"""So many mistakes of one split are told one by one."""


@dataclass(frozen=True, slots=True)
class Item:
    """One line of a data set.

    `prompt` is the whole text for perplexity. exact_match has `answers` (any of them is right);
    acc and acc_norm have `choices` and the index `right` of the right one.
    """

    line: int
    prompt: str
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    right: int = 0
    skill: str | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """What makes two items the same, in one split or in two: the prompt, with its choices in any order."""
        return (self.prompt.strip(), *sorted(self.choices))


def load_items(path: Path, objective: Objective, where: str) -> list[Item]:
    """The items of a JSON Lines file (UTF-8; blank lines are skipped, unknown fields ignored).

    `where` is the path of problems: `objectives.<name>.<split>`.

    Raises:
        InputError: every malformed line, up to 20 one by one; no items; an item twice.
    """
    items, mistakes = read_items(path, objective)
    if mistakes:
        raise InputError(*problems_of(mistakes, where))
    return items


def read_items(path: Path, objective: Objective) -> tuple[list[Item], list[str]]:
    """The good items of a file as `load_items` takes it, and what is wrong with its lines."""
    items: list[Item] = []
    mistakes: list[str] = []
    first_line: dict[tuple[str, ...], int] = {}
    parse = _PARSERS[objective.metric]
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                item = parse(number, _fields(line))
            except ValueError as mistake:
                mistakes.append(f"line {number}: {mistake}")
                continue
            items.append(item)
            if (earlier := first_line.setdefault(item.identity, number)) != number:
                mistakes.append(f"line {number}: the same item as line {earlier}; remove one of them")
    if not items and not mistakes:
        mistakes.append("the file has no items; give one JSON object a line")
    return items, mistakes


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


def _fields(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON of a sensible depth") from None
    if not isinstance(fields, dict):
        raise ValueError(f"is {_brief(fields)}; give a JSON object such as {{…}}")
    return fields


def _exact_match(line: int, fields: dict[str, Any]) -> Item:
    prompt = _text(fields, "prompt")
    given = _required(fields, "answer", "text or a list of accepted texts")
    answers = tuple(_as_text(answer, "answer") for answer in (given if isinstance(given, list) else [given]))
    if not answers:
        raise ValueError('"answer" is an empty list; give at least one accepted text')
    return Item(line, prompt, answers=tuple(answer.strip() for answer in answers), skill=_skill(fields))


def _multiple_choice(line: int, fields: dict[str, Any]) -> Item:
    prompt = _text(fields, "prompt", may_be_empty=True)
    given = _required(fields, "choices", "a list of texts")
    if not isinstance(given, list) or len(given) < 2:
        raise ValueError(f'"choices" is {_brief(given)}; give a list of at least two texts')
    choices = tuple(_as_text(choice, "choices") for choice in given)
    right = _required(fields, "answer", "the index of the right choice")
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(choices):
        raise ValueError(f'"answer" is {_brief(right)}; give the index of the right choice, 0 to {len(choices) - 1}')
    if choices.count(choices[right]) > 1:
        raise ValueError(f'"choices" holds the right choice, {_brief(choices[right])}, more than once')
    return Item(line, prompt, choices=choices, right=right, skill=_skill(fields))


def _perplexity(line: int, fields: dict[str, Any]) -> Item:
    return Item(line, _text(fields, "text"), skill=_skill(fields))


_PARSERS: dict[MetricName, Callable[[int, dict[str, Any]], Item]] = {
    "exact_match": _exact_match,
    "acc": _multiple_choice,
    "acc_norm": _multiple_choice,
    "perplexity": _perplexity,
}


def _required(fields: dict[str, Any], name: str, meaning: str) -> Any:
    if name not in fields:
        raise ValueError(f'has no "{name}" ({meaning})')
    return fields[name]


def _text(fields: dict[str, Any], name: str, *, may_be_empty: bool = False) -> str:
    return _as_text(_required(fields, name, "text"), name, may_be_empty=may_be_empty)


def _as_text(value: Any, name: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise ValueError(f'"{name}" holds {_brief(value)}; text is wanted')
    if not value.strip() and not may_be_empty:
        raise ValueError(f'"{name}" holds an empty text')
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: no tokenizer takes it
        raise ValueError(f'"{name}" holds a character that is not Unicode text') from None
    return value


def _skill(fields: dict[str, Any]) -> str | None:
    return _text(fields, "skill") if fields.get("skill") is not None else None


def _brief(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=True)
    return shown if len(shown) <= 40 else shown[:37] + "…"
