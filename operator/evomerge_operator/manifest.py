"""Reading a manifest: every mistake at once, each with its field path and what is allowed."""

import copy
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from evomerge_contract.foreign import foreign
from evomerge_contract.manifest import Base, EvoMerge
from evomerge_contract.report import Problem
from evomerge_contract.spelling import nearest
from evomerge_contract.yaml_document import DocumentError, read_document
from evomerge_operator.errors import InputError
from evomerge_operator.rules import broken_rules


def load_manifest(path: Path) -> EvoMerge:
    """Read, validate and return the manifest, its relative URIs made absolute against the manifest's folder.

    Raises:
        InputError: with every mistake found.
    """
    document, twice = _read(path)
    problems = [Problem(path=place, message=message) for place, message in twice]
    try:
        manifest = parse_manifest(document, source=str(path), folder=path.resolve().parent)
    except InputError as error:
        raise InputError(str(path), [*problems, *error.problems]) from error
    if problems:
        raise InputError(str(path), problems)
    return manifest


def _read(path: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The document in a file, and the keys that are given twice in it."""
    try:
        document, twice, _ = read_document(yaml.SafeLoader(path.read_text(encoding="utf-8")), "")
    except DocumentError as error:
        raise InputError.at(str(path), error.path or "file", error.message) from error
    except OSError as error:
        raise InputError.at(str(path), "file", f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError.at(str(path), "file", f"is not YAML: {_one_line(error)}") from error
    if not isinstance(document, dict):
        raise InputError.at(str(path), "file", "is not an EvoMerge manifest: expected apiVersion, kind, metadata, spec")
    if words := foreign(document):
        raise InputError.at(str(path), "file", words)
    if "merge_method" in document and "spec" not in document:
        raise InputError.at(str(path), "file", "is a recipe, not the manifest of a search; use evomerge merge")
    return document, twice


def parse_manifest(document: dict[str, Any], *, source: str, folder: Path | None) -> EvoMerge:
    """Validate a manifest that has been read from `source`; relative URIs are relative to `folder`, if given."""
    problems: list[Problem] = []
    try:
        manifest = EvoMerge.model_validate(document)
    except ValidationError as error:
        problems = [_problem(e) for e in error.errors(include_url=False)]
        # Unknown fields alone need not hide what else is wrong.
        unknown = [e["loc"] for e in error.errors() if e["type"] == "extra_forbidden"]
        if len(unknown) < len(problems):
            raise InputError(source, problems) from error
        manifest = EvoMerge.model_validate(_without(document, unknown))
    problems += broken_rules(manifest.spec)
    if problems:
        raise InputError(source, problems)
    return manifest if folder is None else _with_absolute_uris(manifest, folder)


def _without(document: dict[str, Any], unknown: list[tuple[int | str, ...]]) -> dict[str, Any]:
    """A copy of the document that lacks the fields at these places."""
    document = copy.deepcopy(document)
    for *parents, last in unknown:
        holder: Any = document
        for part in parents:
            holder = holder[part]
        holder.pop(last, None)  # by an alias, one thing may stand in two places
    return document


def absolute_uri(uri: str, folder: Path) -> str:
    """`uri` as it is when it has a scheme other than `file:`; else the `file://` URI of the path under `folder`."""
    scheme, colon, rest = uri.partition(":")
    if colon and scheme not in ("file",) and rest.startswith("//"):
        return uri
    path = uri.removeprefix("file://").removeprefix("file:")
    return (folder / path).resolve().as_uri()


def _with_absolute_uris(manifest: EvoMerge, folder: Path) -> EvoMerge:
    spec = manifest.spec
    models = [m.model_copy(update=_absolute(m, folder)) for m in spec.models]
    base = spec.base and spec.base.model_copy(update=_absolute(spec.base, folder))
    objectives = [
        objective.with_uris({split: absolute_uri(uri, folder) for split, uri in objective.evaluator.uris.items()})
        for objective in spec.evaluation.objectives
    ]
    evaluation = spec.evaluation.model_copy(update={"objectives": objectives})
    update = {"models": models, "base": base, "evaluation": evaluation}
    return manifest.model_copy(update={"spec": spec.model_copy(update=update)})


def _absolute(model: Base, folder: Path) -> dict[str, str]:
    return {
        key: absolute_uri(uri, folder)
        for key, uri in (("uri", model.uri), ("adapter", model.adapter))
        if uri is not None
    }


def _problem(error: ErrorDetails) -> Problem:
    return Problem(path=_path(error["loc"]), message=_message(error))


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or "file"


_PATTERNS = {
    "[smhd]$": 'is not a time span with one unit, such as "90s", "30m", "72h" or "7d"',
    "|Ki|": 'is not a quantity such as "2", "500m" or "4Gi"',
    "^s3://": "is not of the form s3://bucket/folder",
    "^/": "is not an absolute path",
    "a-z0-9": "is not a name: lower-case letters, digits and inner hyphens only",
    "x1f": "is empty or holds control characters",
    "": 'is not a plain number such as "0.5" (at most six digits before and after the point)',
}
"""What a text should have been, by a part of the pattern that it does not match; the first that is in it counts."""


def _message(error: ErrorDetails) -> str:
    kind, given, context = error["type"], error.get("input"), error.get("ctx", {})
    pattern = str(context.get("pattern", ""))
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return _unknown(error["loc"])
    if kind == "string_type" and isinstance(given, int | float | date) and not isinstance(given, bool):
        return f'must be text: write "{given}" in quotes'
    if kind == "string_pattern_mismatch":
        words = next(words for part, words in _PATTERNS.items() if part in pattern)
        return words if "is empty" in words else f'"{given}" {words}'
    if kind == "literal_error":
        return f"{given!r} is not known; allowed: {context.get('expected')}"
    text = error["msg"]
    return f"{text[0].lower()}{text[1:]}, not {given!r}" if isinstance(given, str | int | float) else text


def _unknown(loc: tuple[int | str, ...]) -> str:
    """What is said of a field that does not belong where it stands."""
    name, here = str(loc[-1]), _siblings(loc)
    if near := nearest(name, here):
        return f"is not a field that is known here; did you mean {near}?"
    if places := [place for place, names in _holders(EvoMerge, "").items() if name in names]:
        return f"does not belong here, but to {' or '.join(places)}"
    return f"is not a field that is known here; allowed: {', '.join(here)}"


@cache
def _holders(model: type[BaseModel], path: str) -> dict[str, list[str]]:
    """The fields of each part of a manifest that has any, by its path."""
    found: dict[str, list[str]] = {path: []} if path else {}
    for name, field in model.model_fields.items():
        shown = field.alias or name
        found.setdefault(path, []).append(shown)
        listed = "[]" if "list[" in str(field.annotation) else ".NAME" if "dict[" in str(field.annotation) else ""
        if inner := _inner(field.annotation):
            found |= _holders(inner, f"{path}.{shown}{listed}".removeprefix("."))
    return {place: names for place, names in found.items() if place}


def _siblings(loc: tuple[int | str, ...]) -> list[str]:
    """The fields allowed where an unknown one stands."""
    model: type[BaseModel] = EvoMerge
    for part in loc[:-1]:
        named = {f.alias or name: f.annotation for name, f in model.model_fields.items()}
        if part in named:  # else an index, or a mapping's key: the model inside has been found already
            model = _inner(named[str(part)]) or model
    return [f.alias or name for name, f in model.model_fields.items()]


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The model in `M`, `list[M]`, `dict[str, M]` or `M | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for argument in get_args(annotation) if (model := _inner(argument))), None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
