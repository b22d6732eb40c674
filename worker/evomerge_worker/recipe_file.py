"""Reading a recipe as people write it: a mergekit configuration in YAML."""

import difflib
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from evomerge_contract.recipe import Recipe, RecipeModel, Slice, SliceSource
from evomerge_contract.report import Problem
from evomerge_worker.errors import InputError

_NOT_DONE = {
    "modules": "a model of several stacks of layers is merged as one; write models, or slices of its language model",
    "chat_template": "the result has the chat template of its base_model, else of its first model; leave this out and "
    "put a chat_template.jinja into the result",
    "residual_weight": "mergekit reads it and does nothing with it; leave it out",
}
"""Keys of mergekit 0.1.5 that mean something there and are not done here, with what to do."""

_AS_TEXT = (
    "a model is named by one text here: a folder, s3://…, or hub-id@commit, and perhaps +adapter behind it; the "
    "architecture is that of its config.json"
)
_SETTING = (
    "is neither a number, nor true or false, nor a gradient (a list of numbers), nor a filter with a value, or a list "
    "of those"
)
_NAMELESS = "its name is no text to YAML, as on, off, yes, no and numbers are none; put it in quotes"
_RANGE = "is not two whole numbers: the first layer, and the one behind the last"
_LONGEST = 60


def read_recipe(path: Path) -> tuple[Recipe | None, list[Problem]]:
    """The recipe in a YAML file as far as it can be read, and every mistake with its key.

    Raises:
        InputError: it cannot be read at all.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError.at(str(path), f"cannot be read as YAML: {' '.join(str(error).split())}") from error
    return _look(document)


def parse_recipe(document: Any) -> Recipe:
    """The recipe that a YAML document holds.

    Raises:
        InputError: it is none; every mistake with its key.
    """
    recipe, problems = _look(document)
    if recipe is None or problems:
        raise InputError(*problems)
    return recipe


def _look(document: Any) -> tuple[Recipe | None, list[Problem]]:
    """The recipe in `document`, and its mistakes. Keys and dtypes that are not known stand in no other key's way: of
    what is left without them a person hears at the same time."""
    if not isinstance(document, dict):
        told = "is not a mergekit configuration: expected merge_method and models or slices"
        return None, [Problem(path="recipe", message=told)]
    try:
        return Recipe.model_validate(document), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
    problems = list(dict.fromkeys(_problem(e, document) for e in errors))
    rest = deepcopy(document)
    for one in errors:
        if one["type"] not in ("extra_forbidden", "literal_error"):
            return None, problems
        del _found(rest, one["loc"][:-1])[one["loc"][-1]]
    recipe, more = _look(rest)
    return recipe, [*problems, *more]


def _problem(error: ErrorDetails, document: Any) -> Problem:
    """One mistake. Within a parameter, where each form it might have had is told apart, the parameter is the place."""
    loc = error["loc"]
    if "parameters" in loc[:-1]:
        loc = loc[: loc.index("parameters") + 2]
        named = isinstance(_key(_found(document, loc[:-1]), loc[-1]), str)
        message = f"{_shown(_found(document, loc))} {_SETTING}" if named else _NAMELESS
        return Problem(path=_path(loc, document), message=message)
    if "layer_range" in loc:
        loc = loc[: loc.index("layer_range") + 1]
        held = _found(document, loc[:-1])
        message = f"{_shown(held['layer_range'])} {_RANGE}" if "layer_range" in held else "is missing"
        return Problem(path=_path(loc, document), message=message)
    return Problem(path=_path(loc, document), message=_message(error))


def _path(loc: tuple[int | str, ...], document: Any) -> str:
    """The place of a value, as people write it."""
    path = "recipe"
    for part in loc:
        listed = isinstance(document, list)
        path += f"[{part}]" if listed else f".{_key(document, part)}"
        document = document[part] if listed or part in document else {}
    return path


def _key(holder: dict[Any, Any], part: int | str) -> Any:
    """A key as YAML has it: to pydantic, true is 1."""
    return next((key for key in holder if key == part), part)


def _found(document: Any, loc: tuple[int | str, ...]) -> Any:
    for part in loc:
        document = document[part]
    return document


def _message(error: ErrorDetails) -> str:
    kind, given = error["type"], error.get("input")
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return _unknown(str(error["loc"][-1]), error["loc"][:-1])
    if kind == "literal_error":
        return f"{_shown(given)} is not known; allowed: {error.get('ctx', {}).get('expected')}"
    if kind == "string_type" and error["loc"][-1] in ("model", "base_model") and isinstance(given, dict):
        return _AS_TEXT
    message = f"{error['msg'][0].lower()}{error['msg'][1:]}"
    return message if kind == "unsupported" else f"{message}, not {_shown(given)}"


def _unknown(key: str, holder: tuple[int | str, ...]) -> str:
    if key in _NOT_DONE:
        return f"is not done here: {_NOT_DONE[key]}"
    known = list(_model_at(holder).model_fields)
    if near := difflib.get_close_matches(key, known, n=1):
        return f"is not a key that is known here; did you mean {near[0]}?"
    return f"is not a key that is known here; allowed: {', '.join(known)}"


def _model_at(holder: tuple[int | str, ...]) -> type[BaseModel]:
    """What stands at a place of a recipe, by the last name on the way there."""
    names = [part for part in holder if isinstance(part, str)]
    kinds: dict[str, type[BaseModel]] = {"models": RecipeModel, "slices": Slice, "sources": SliceSource}
    return kinds.get(names[-1], Recipe) if names else Recipe


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except TypeError:  # a key that JSON has no form for, a date for one
        text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
