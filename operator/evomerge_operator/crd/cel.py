"""CEL validations, and the places of a schema where they are put.

Paths: `a.b`, `a[]` for a list's items, `a{}` for a mapping's values; "" is the schema itself.
"""

from collections.abc import Iterable
from typing import Any

Rule = dict[str, Any]


def rule(cel: str, message: str, *, words: str | None = None, field: str | None = None) -> Rule:
    """A validation. `words` is CEL that makes a fuller message than `message`; `field` is the field to blame."""
    made: Rule = {"rule": cel, "message": message}
    if words is not None:
        made["messageExpression"] = words
    if field is not None:
        made["fieldPath"] = field
    return made


def names_in(names: Iterable[str]) -> str:
    """A CEL list of texts."""
    return "[" + ", ".join(f"'{name}'" for name in names) + "]"


def attach(schema: dict[str, Any], rules: dict[str, list[Rule]]) -> None:
    """Put each rule at its place in the schema.

    Raises:
        KeyError: there is no such place.
    """
    for path, found in rules.items():
        _at(schema, path)["x-kubernetes-validations"] = found


def _at(node: dict[str, Any], path: str) -> dict[str, Any]:
    inner = {"[]": "items", "{}": "additionalProperties"}
    for part in path.replace("[]", ".[]").replace("{}", ".{}").split(".") if path else []:
        node = node[inner[part]] if part in inner else node["properties"][part]
    return node
