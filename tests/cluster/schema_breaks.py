"""Every way to break what a structural schema asks of a document, one thing at a time."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Break:
    """A document with one thing wrong.

    Attributes:
        document: all of it.
        place: of the field that a refusal must name, as the API server writes it.
        what: the keyword of the schema that is disobeyed.
        words: a regular expression for what the refusal says.
    """

    document: Any
    place: str
    what: str
    words: str


def breaks(schema: Schema, good: Any, name: str) -> Iterator[Break]:
    """A break for each keyword of each field; fields that `good` lacks are given a plain value of their type first."""
    yield from _breaks(schema, good, (), name)


def _breaks(schema: Schema, good: Any, path: Path, place: str) -> Iterator[Break]:
    for what, value, words in _wrong_values(schema, _at(good, path)):
        yield Break(_with(good, path, value), place, what, words)
    for field in schema.get("required", []):
        whole = _with(good, path, _filled(schema, _at(good, path)))
        if field in _at(whole, path) and "default" not in schema["properties"][field]:
            yield Break(_without(whole, (*path, field)), f"{place}.{field}", "required", "Required value")
    for field, child in schema.get("properties", {}).items():
        yield from _inside(child, good, (*path, field), f"{place}.{field}")
    if "items" in schema:
        yield from _inside(schema["items"], good, (*path, 0), f"{place}[0]")
    if isinstance(schema.get("additionalProperties"), dict):
        key = next(iter(_at(good, path) or {}), "key")
        yield from _inside(schema["additionalProperties"], good, (*path, key), f"{place}.{key}")


def _inside(schema: Schema, good: Any, path: Path, place: str) -> Iterator[Break]:
    if _at(good, path) is None:
        good = _with(good, path, _plain(schema))
    yield from _breaks(schema, good, path, place)


def _wrong_values(schema: Schema, good: Any) -> Iterator[tuple[str, Any, str]]:
    """Keyword, value and words, for each keyword of one field."""
    kind = schema["type"]
    yield "type", 7 if kind == "string" else "seven", f"must be of type {schema.get('format', kind)}"
    if kind == "string":
        yield from _wrong_texts(schema)
    if "minimum" in schema:
        yield "minimum", schema["minimum"] - 1, "should be greater than or equal to"
    if "maximum" in schema:
        yield "maximum", schema["maximum"] + 1, "should be less than or equal to"
    if schema.get("minItems"):
        yield "minItems", good[: schema["minItems"] - 1], "should have at least"
    if "maxItems" in schema:
        item = (good or [_plain(schema["items"])])[0]
        yield "maxItems", [item] * (schema["maxItems"] + 1), "Too many"
    if schema.get("minProperties"):
        yield "minProperties", {}, "should have at least"
    if "maxProperties" in schema:
        value = next(iter((good or {}).values()), None) or _plain(schema["additionalProperties"])
        yield "maxProperties", {f"k{i}": value for i in range(schema["maxProperties"] + 1)}, "Too many"


def _wrong_texts(schema: Schema) -> Iterator[tuple[str, Any, str]]:
    if "enum" in schema:
        yield "enum", "nonsense", "Unsupported value"
    if "pattern" in schema:
        yield "pattern", "\n", "should match"
    if schema.get("minLength"):
        yield "minLength", "", "should be at least"
    if "maxLength" in schema:
        yield "maxLength", "1" * (schema["maxLength"] + 1), "Too long"


def _plain(schema: Schema) -> Any:
    """A value of the type; whether it keeps its other bounds is not minded."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema["type"]
    if kind == "object":
        return {name: _plain(schema["properties"][name]) for name in schema.get("required", [])}
    return {"array": [], "string": "1", "boolean": True}.get(kind, schema.get("minimum", 1))


def _filled(schema: Schema, good: Any) -> Any:
    return {name: _plain(schema["properties"][name]) for name in schema.get("required", [])} | (good or {})


def _at(value: Any, path: Path) -> Any:
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _with(value: Any, path: Path, new: Any) -> Any:
    """A copy with `new` at the path."""
    if not path:
        return copy.deepcopy(new)
    value = copy.deepcopy(value)
    *parents, last = path
    holder = value
    for part in parents:
        holder = holder[part]
    if isinstance(holder, list) and last == len(holder):
        holder.append(new)
    else:
        holder[last] = new
    return value


def _without(value: Any, path: Path) -> Any:
    value = copy.deepcopy(value)
    del _at(value, path[:-1])[path[-1]]
    return value
