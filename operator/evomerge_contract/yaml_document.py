"""A YAML document that a person wrote: read with a word about what YAML itself passes over or breaks at.

The loader is given, so that the contract needs no YAML to be installed.
"""

from collections.abc import Iterator
from typing import Any

_MERGE = "tag:yaml.org,2002:merge"
"""Of the key <<, which stands for no value."""


class DocumentError(Exception):
    """A place in a document at which it cannot be read, and why."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


def read_document(loader: Any, root: str) -> tuple[Any, list[tuple[str, str]]]:
    """What a yaml.SafeLoader reads, and the keys given twice in one mapping as (path, message); the last one counts.

    Paths begin with `root`, which may be empty.

    Raises:
        DocumentError: a value holds itself, is no date or number though it looks like one, or is too deep to follow.
        yaml.YAMLError: it is not YAML.
    """
    try:
        node = loader.get_single_node()
        if node is None:
            return None, []
        twice = list(_given_twice(node, root, loader, {}))
        return loader.construct_document(node), twice
    except RecursionError as error:
        raise DocumentError(root, "is nested too deeply to be read; write it flatter") from error


def _given_twice(node: Any, path: str, loader: Any, seen: dict[int, bool]) -> Iterator[tuple[str, str]]:
    """Look at a node and all below it, once however many aliases lead there; `seen`: whether it is being looked at."""
    if seen.get(id(node)):
        raise DocumentError(path, "holds itself by an alias (*); write its value out")
    if id(node) in seen:
        return
    seen[id(node)] = True
    if isinstance(node.value, str):
        _check_scalar(node, path, loader)
    elif node.id == "sequence":
        for index, item in enumerate(node.value):
            yield from _given_twice(item, f"{path}[{index}]", loader, seen)
    else:
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            place, line = ".".join(filter(None, (path, str(key.value)))), key.start_mark.line + 1
            _check_scalar(key, place, loader)
            if first := lines.get((key.tag, str(key.value))):
                yield place, f"is given in line {first} and again in line {line}; leave one out"
            lines[key.tag, str(key.value)] = line
            yield from _given_twice(value, place, loader, seen)
    seen[id(node)] = False


def _check_scalar(node: Any, path: str, loader: Any) -> None:
    if node.tag == _MERGE or not isinstance(node.value, str):
        return
    try:
        loader.construct_object(node)
    except (ValueError, LookupError, AttributeError) as error:
        line = node.start_mark.line + 1
        message = (
            f"{node.value} in line {line} looks like a date or number and is none; if it is text, put it in quotes"
        )
        raise DocumentError(path, message) from error
