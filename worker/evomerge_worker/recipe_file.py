"""Reading a recipe as people write it: a mergekit configuration in YAML."""

import difflib
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from evomerge_contract.methods import METHODS
from evomerge_contract.recipe import Recipe, RecipeModel, Slice, SliceSource, TokenizerSettings
from evomerge_contract.report import Problem
from evomerge_contract.yaml_document import DocumentError, read_document
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
_NAMELESS = "its name is no text to YAML, as on, off, yes, no, numbers and dates are none; put it in quotes"
_EMPTY = "is an empty list; give a number or a list of numbers, or leave the parameter out"
_RANGE = "is not two whole numbers: the first layer, and the one behind the last"
_LAYERS = "belongs to slices[].sources[]; to merge some layers of a model, write slices instead of models"
_WRITE = {
    "models": 'write "- model: {}" for each model',
    "slices": 'write "- sources:" for each slice, and its models below it',
    "sources": 'write "- model: {}" with its layer_range for each model',
    "parameters": 'write a line for each parameter below it, "weight: 0.5" for one',
    "tokenizer": 'write "tokenizer_source: {}", or "source: {}" below tokenizer',
}
"""How what stands under a key is written; {} is the text that stands there instead."""
_LONGEST = 60


def read_recipe(path: Path) -> tuple[Recipe | None, list[Problem]]:
    """The recipe in a YAML file as far as it can be read, and every mistake with its key.

    Raises:
        InputError: it cannot be read at all.
    """
    try:
        document, twice = read_document(yaml.SafeLoader(path.read_text(encoding="utf-8")), "recipe")
    except DocumentError as error:
        raise InputError.at(error.path, error.message) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError.at(str(path), f"cannot be read as YAML: {' '.join(str(error).split())}") from error
    recipe, problems = _look(document)
    return recipe, [*(Problem(path=place, message=message) for place, message in twice), *problems]


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
    """The recipe in `document`, and its mistakes. Those that can be put right stand in no other's way: of the recipe
    that is left a person hears at the same time."""
    if not isinstance(document, dict):
        told = "is not a mergekit configuration: expected merge_method and models or slices"
        return None, [Problem(path="recipe", message=told)]
    if "merge_method" not in document and {"apiVersion", "spec"} & document.keys():
        told = "is the manifest of a search, not a recipe; run it with evomerge run"
        return None, [Problem(path="recipe", message=told)]
    try:
        return Recipe.model_validate(document), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
    problems = list(dict.fromkeys(_problem(e, document) for e in errors))
    rest = deepcopy(document)
    if not all(_put_right(e, rest) for e in errors):
        return None, problems
    recipe, more = _look(rest)
    return recipe, [*problems, *more]


def _put_right(error: ErrorDetails, document: dict[Any, Any]) -> bool:
    """Take a mistake out of `document`, if what is left says no less of the models than was meant.

    A faulty parameter gets a value that is right, or it would count as missing.
    """
    loc = error["loc"]
    if "parameters" in loc[:-1]:
        *place, name = _parameter(loc)
        holder = _found(document, tuple(place))
        method = METHODS.get(str(document.get("merge_method")))
        if name in holder and isinstance(name, str):
            holder[name] = method.defaults.get(name, 1.0) if method is not None else 1.0
            return True
    elif error["type"] in ("extra_forbidden", "literal_error") or loc[-1:] in (("pad_to_multiple_of",), ("tokens",)):
        _found(document, loc[:-1]).pop(loc[-1], None)  # by an alias, one thing may stand in two places
        return True
    return False


def _problem(error: ErrorDetails, document: Any) -> Problem:
    """One mistake. Within a parameter, where each form it might have had is told apart, the parameter is the place."""
    loc = error["loc"]
    if "parameters" in loc[:-1]:
        loc = _parameter(loc)
        return Problem(path=_path(loc, document), message=_wrong_parameter(_found(document, loc[:-1]), loc[-1]))
    if "layer_range" in loc and error["type"] != "extra_forbidden":
        loc = loc[: loc.index("layer_range") + 1]
        held = _found(document, loc[:-1])
        message = f"{_shown(held['layer_range'])} {_RANGE}" if "layer_range" in held else "is missing"
        return Problem(path=_path(loc, document), message=message)
    return Problem(path=_path(loc, document), message=_message(error))


def _parameter(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The place of the parameter in or at which something is wrong."""
    return loc[: loc.index("parameters") + 2]


def _wrong_parameter(holder: dict[Any, Any], name: int | str) -> str:
    key = _key(holder, name)
    if not isinstance(key, str):
        return _NAMELESS
    given = holder[key]
    return _EMPTY if given == [] else f"{_shown(given)} {_SETTING}"


def _path(loc: tuple[int | str, ...], document: Any) -> str:
    """The place of a value, as people write it."""
    path = "recipe"
    for part in loc:
        listed = isinstance(document, list)
        path += f"[{part}]" if listed else f".{_key(document, part)}"
        document = document[part] if listed or part in document else {}
    return path


def _key(holder: dict[Any, Any], part: int | str) -> Any:
    """A key as YAML has it: to pydantic, true is 1 and a date its repr."""
    return next((key for key in holder if part in (key, repr(key))), part)


def _found(document: Any, loc: tuple[int | str, ...]) -> Any:
    for part in loc:
        document = document[part]
    return document


def _message(error: ErrorDetails) -> str:
    kind, given, loc = error["type"], error.get("input"), error["loc"]
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return _unknown(str(loc[-1]), loc[:-1])
    if kind == "literal_error":
        return f"{_shown(given)} is not known; allowed: {error.get('ctx', {}).get('expected')}"
    if kind == "string_type":
        return _no_text(given, loc[-1])
    if kind in ("list_type", "dict_type", "model_type", "too_short"):
        return _no_holder(kind, given, _names(loc)[-1])
    if loc[-1:] == ("pad_to_multiple_of",):
        return f"{_shown(given)} is not a whole number of 1 or more"
    message = f"{error['msg'][0].lower()}{error['msg'][1:]}"
    return message if kind == "unsupported" else f"{message}, not {_shown(given)}"


def _no_text(given: Any, key: int | str) -> str:
    if given is None:
        return "has no value; write one, or leave the key out"
    if isinstance(given, dict) and key in ("model", "base_model"):
        return _AS_TEXT
    if isinstance(given, dict | list):
        return f"{_shown(given)} is not a text"
    return f"{given} is no text to YAML; put it in quotes"


def _no_holder(kind: str, given: Any, name: str) -> str:
    """What is said of a value that should have been a list, or keys with values; `name` is the key that it is under."""
    wanted = "a list" if kind == "list_type" else "a set of keys with values"
    wrong = "is an empty list" if kind == "too_short" else f"{_shown(given)} is not {wanted}"
    return f"{wrong}; {_WRITE[name].replace('{}', given if isinstance(given, str) else 'NAME')}"


def _unknown(key: str, holder: tuple[int | str, ...]) -> str:
    if key in _NOT_DONE:
        return f"is not done here: {_NOT_DONE[key]}"
    if key == "layer_range":
        return _LAYERS
    known = list(_model_at(holder).model_fields)
    if near := difflib.get_close_matches(key, known, n=1):
        return f"is not a key that is known here; did you mean {near[0]}?"
    return f"is not a key that is known here; allowed: {', '.join(known)}"


def _model_at(holder: tuple[int | str, ...]) -> type[BaseModel]:
    """What stands at a place of a recipe, by the last name on the way there."""
    kinds: dict[str, type[BaseModel]] = {
        "models": RecipeModel,
        "slices": Slice,
        "sources": SliceSource,
        "tokenizer": TokenizerSettings,
    }
    return kinds.get(_names(holder)[-1], Recipe) if holder else Recipe


def _names(loc: tuple[int | str, ...]) -> list[str]:
    return [part for part in loc if isinstance(part, str)]


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):  # a key that JSON has no form for, a date for one; a value that holds itself
        text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
