"""A YAML document that a person wrote: read with a word about what YAML itself passes over or breaks at.

The loader is given, so that the contract needs no YAML to be installed.
"""

from collections.abc import Iterator, Set
from typing import Any, NamedTuple

from evomerge_contract.foreign import several

_MERGE = "tag:yaml.org,2002:merge"
"""Of the key <<, which stands for no value."""


class DocumentError(Exception):
    """A place in a document at which it cannot be read, and why."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


class Document(NamedTuple):
    """What a document holds, and the keys given twice in one of its mappings as (path, message); the last one counts.

    `lent` are the keys of the document itself whose value, or a part of it, is used elsewhere too, by an alias.
    """

    value: Any
    twice: list[tuple[str, str]]
    lent: Set[str]


def read_document(loader: Any, root: str) -> Document:
    """The one document that a yaml.SafeLoader reads. Paths begin with `root`, which may be empty.

    Raises:
        DocumentError: a value holds itself, is no date or number though it looks like one, or is too deep to follow;
            there are several documents.
        yaml.YAMLError: it is not YAML.
    """
    found = read_documents(loader, root)
    if len(found) > 1:
        raise DocumentError(root, several(len(found), [d.value for d in found if isinstance(d.value, dict)]))
    return found[0]


def read_documents(loader: Any, root: str) -> list[Document]:
    """The documents that a yaml.SafeLoader reads, empty ones aside; a single None where there is no other.

    Of several, paths in the first begin with `root[0]`.

    Raises:
        DocumentError, yaml.YAMLError: as for `read_document`.
    """
    try:
        nodes = []
        while loader.check_node():
            nodes.append(loader.get_node())
        nodes = [node for node in nodes if node.value != ""]
        roots = [root] if len(nodes) < 2 else [f"{root}[{number}]" for number in range(len(nodes))]
        found = []
        for node, place in zip(nodes, roots, strict=False):
            twice = list(_given_twice(node, place, loader, {}))  # first: what construction would break at is told
            found.append(Document(loader.construct_document(node), twice, _lent(node)))
    except RecursionError as error:
        raise DocumentError(root, "is nested too deeply to be read; write it flatter") from error
    return found or [Document(None, [], set())]


def _entries(node: Any) -> dict[str, Any]:
    """The nodes of a mapping's values, by its keys."""
    return {str(key.value): value for key, value in node.value} if node.id == "mapping" else {}


def _lent(node: Any) -> Set[str]:
    """The keys of a document that hold something which is used elsewhere too."""
    holders: dict[int, set[str]] = {}
    for name, value in _entries(node).items():
        for one in _below(value, {}):
            holders.setdefault(one, set()).add(name)
    return {name for names in holders.values() if len(names) > 1 for name in names}


def _below(node: Any, seen: dict[int, None]) -> dict[int, None]:
    """The identities of a node and of all below it."""
    if id(node) not in seen:
        seen[id(node)] = None
        for item in [] if isinstance(node.value, str) else node.value:
            for part in item if isinstance(item, tuple) else (item,):
                _below(part, seen)
    return seen


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
