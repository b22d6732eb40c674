"""A contract model as the structural OpenAPI schema that Kubernetes wants: no references, no unions, all bounded."""

from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]

_KEPT = (
    "description", "type", "format", "enum", "pattern", "default", "required",
    "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
)  # fmt: skip
_READ = {"title", "const", "$ref", "anyOf", "properties", "items", "additionalProperties"}

BOUNDS = {"string": ("maxLength", 4096), "array": ("maxItems", 256), "map": ("maxProperties", 1024)}
"""What `fill` puts where the contract gives no bound."""


def structural(model: type[BaseModel], *, fill: bool = False) -> Schema:
    """The schema of `model`, by its wire names.

    `fill` bounds what the contract leaves open, as is right for what only the operator writes; without it an open
    string, list or mapping is an error.

    Raises:
        ValueError: the model says something that a structural schema cannot, or lacks a bound.
    """
    raw = model.model_json_schema(by_alias=True)
    return _node(raw, raw.get("$defs", {}), "", fill)


def _node(raw: Schema, definitions: dict[str, Schema], path: str, fill: bool) -> Schema:
    raw = _plain(raw, definitions, path)
    unknown = set(raw) - set(_KEPT) - _READ - {"$defs"}
    if unknown:
        raise ValueError(f"{path}: {', '.join(sorted(unknown))} has no place in a structural schema")
    node: Schema = {key: raw[key] for key in _KEPT if key in raw}
    if "description" in node:
        node["description"] = _flowing(node["description"])
    if "const" in raw:
        node["enum"] = [raw["const"]]
    if "properties" in raw:
        node["properties"] = {
            name: _node(child, definitions, f"{path}.{name}", fill) for name, child in raw["properties"].items()
        }
    elif raw.get("additionalProperties") is True:
        node["x-kubernetes-preserve-unknown-fields"] = True
    elif "additionalProperties" in raw:
        node["additionalProperties"] = _node(raw["additionalProperties"], definitions, f"{path}{{}}", fill)
    if "items" in raw:
        node["items"] = _node(raw["items"], definitions, f"{path}[]", fill)
    _bound(node, path, fill)
    return _with_lean_default(node)


def _plain(raw: Schema, definitions: dict[str, Schema], path: str) -> Schema:
    """The schema without references and without `or null`; what stands beside a reference has the last word."""
    if "anyOf" in raw:
        choices = [choice for choice in raw["anyOf"] if choice != {"type": "null"}]
        if len(choices) != 1:
            raise ValueError(f"{path}: a structural schema knows no unions")
        beside = {key: value for key, value in raw.items() if key != "anyOf" and (key, value) != ("default", None)}
        return _plain({**choices[0], **beside}, definitions, path)
    if "$ref" in raw:
        beside = {key: value for key, value in raw.items() if key != "$ref"}
        return _plain({**definitions[raw["$ref"].rpartition("/")[2]], **beside}, definitions, path)
    return raw


def _bound(node: Schema, path: str, fill: bool) -> None:
    kind = "map" if "additionalProperties" in node else node.get("type")
    if kind not in BOUNDS or "enum" in node or "format" in node:
        return
    key, value = BOUNDS[kind]
    if key not in node and not fill:
        raise ValueError(f"{path}: {key} is missing; give it in the contract")
    node.setdefault(key, value)


def _with_lean_default(node: Schema) -> Schema:
    """A record's default without what its fields' own defaults say already."""
    if isinstance(node.get("default"), dict):
        node["default"] = _lean(node["default"], node)
    return node


def _lean(value: Schema, node: Schema) -> Schema:
    lean: Schema = {}
    for name, given in value.items():
        child = node.get("properties", {}).get(name, {})
        if isinstance(given, dict):
            given = _lean(given, child)
        if given is not None and given != child.get("default"):
            lean[name] = given
    return lean


def _flowing(text: str) -> str:
    """A docstring with its line breaks gone; paragraphs stay."""
    return "\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
