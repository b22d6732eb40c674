"""JSON Lines: items read line by line, and the fields that lines have in common."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from evomerge_worker.evaluate.items import Item

T = TypeVar("T", bound=Item)
Fields = dict[str, Any]
"""The JSON object of a line."""


def read_lines(path: Path, item: Callable[[int, Fields], T]) -> tuple[list[T], list[str]]:
    """The good items of a JSON Lines file (UTF-8; blank lines are skipped), and what is wrong with its lines.

    An item of a line's number and fields is made by `item`, which raises what is wrong with them as a ValueError.
    """
    items: list[T] = []
    mistakes: list[str] = []
    first_line: dict[tuple[str, ...], int] = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                found = item(number, _fields(line))
            except ValueError as mistake:
                mistakes.append(f"line {number}: {mistake}")
                continue
            items.append(found)
            if (earlier := first_line.setdefault(found.identity, number)) != number:
                mistakes.append(f"line {number}: the same item as line {earlier}; remove one of them")
    if not items and not mistakes:
        mistakes.append("the file has no items; give one JSON object a line")
    return items, mistakes


def _fields(line: bytes) -> Fields:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON of a sensible depth") from None
    if not isinstance(fields, dict):
        raise ValueError(f"is {brief(fields)}; give a JSON object such as {{…}}")
    return fields


def required(fields: Fields, name: str, meaning: str) -> Any:
    """A field that must be there; `meaning` is what it should hold."""
    if name not in fields:
        raise ValueError(f'has no "{name}" ({meaning})')
    return fields[name]


def text_of(fields: Fields, name: str, *, may_be_empty: bool = False) -> str:
    """A field that must hold text."""
    return as_text(required(fields, name, "text"), name, may_be_empty=may_be_empty)


def as_text(value: Any, name: str, *, may_be_empty: bool = False) -> str:
    """A value of the field `name` that must be text."""
    if not isinstance(value, str):
        raise ValueError(f'"{name}" holds {brief(value)}; text is wanted')
    if not value.strip() and not may_be_empty:
        raise ValueError(f'"{name}" holds an empty text')
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: no tokenizer takes it
        raise ValueError(f'"{name}" holds a character that is not Unicode text') from None
    return value


def skill_of(fields: Fields) -> str | None:
    """The skill that any item may name."""
    return text_of(fields, "skill") if fields.get("skill") is not None else None


def brief(value: Any) -> str:
    """A value as JSON, cut to 40 characters, for messages."""
    shown = json.dumps(value, ensure_ascii=True)
    return shown if len(shown) <= 40 else shown[:37] + "…"
