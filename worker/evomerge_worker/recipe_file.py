"""Reading a recipe as people write it: a mergekit configuration in YAML."""

import json
from collections.abc import Sequence, Set
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from evomerge_contract.foreign import foreign
from evomerge_contract.methods import METHODS
from evomerge_contract.recipe import DTypeName, Recipe
from evomerge_contract.report import Problem
from evomerge_contract.spelling import nearest
from evomerge_contract.yaml_document import Document, DocumentError, read_documents
from evomerge_worker.errors import InputError
from evomerge_worker.recipe_forms import unwrapped
from evomerge_worker.recipe_keys import Keys

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
_CHOSEN_AT = ("tokenizer", "tokens")
_NO_CHOICES = 'is not a set of tokens; write "TOKEN: {source: MODEL}" for each below it'
_NO_CHOICE = (
    "is not how a token's embedding is chosen; write {source: MODEL}, {source: {kind: zero}} or {source: {kind: "
    "model_token, model: MODEL, token: TOKEN}}, or token_id instead of token, and perhaps force: true"
)
_WRITE = {
    "models": 'write "- model: {}" for each model',
    "slices": 'write "- sources:" for each slice, and its models below it',
    "sources": 'write "- model: {}" with its layer_range for each model',
    "parameters": 'write a line for each parameter below it, "weight: 0.5" for one',
    "tokenizer": 'write "tokenizer_source: {}", or "source: {}" below tokenizer',
}
"""How what stands under a key is written; {} is the text that stands there instead."""
_DTYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
}
"""Other names for the types of numbers."""
_NOT_DONE = ("float64", "int64")
"""mergekit's other types: no slips."""
_LONGEST = 60


class Written(NamedTuple):
    """A recipe as far as it can be read, every mistake in it, and the keys of it that are passed over."""

    recipe: Recipe | None
    problems: list[Problem]
    warnings: list[Problem]


class Part(NamedTuple):
    """One of a file's recipes; by its `name` those beside it mean its result. The last to be merged has none."""

    name: str | None
    written: Written


def read_recipes(path: Path) -> list[Part]:
    """The recipes in a YAML file, a document each, as mergekit-multi has them; most files hold one.

    Of several, paths in the first begin with `recipe[0]`.

    Raises:
        InputError: it cannot be read at all.
    """
    try:
        documents = read_documents(yaml.SafeLoader(path.read_text(encoding="utf-8")), "recipe")
    except DocumentError as error:
        raise InputError.at(error.path, error.message) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError.at(str(path), f"cannot be read as YAML: {' '.join(str(error).split())}") from error
    if len(documents) == 1:
        return [Part(None, _written(next(iter(documents)), "recipe"))]
    return [_part(document, f"recipe[{number}]") for number, document in enumerate(documents)]


def _part(document: Document, place: str) -> Part:
    if not isinstance(document.value, dict):
        raise InputError.at(place, "is not a mergekit configuration: expected merge_method and models or slices")
    value = dict(document.value)
    name = value.pop("name", None)
    part = Part(None if name is None else str(name), _written(document._replace(value=value), place))
    if name is not None and not isinstance(name, str):
        part.written.problems.append(Problem(path=f"{place}.name", message=f"{name} is no text to YAML; quote it"))
    return part


def _written(document: Document, place: str) -> Written:
    """The recipe in a document, whose paths begin with `place`."""
    try:
        written = parse_recipe(document.value, document.lent)
    except InputError as error:
        raise InputError(*_at(place, error.problems)) from error
    given_twice = [Problem(path=where, message=message) for where, message in document.twice]
    problems = [*given_twice, *_at(place, written.problems)]
    return written._replace(problems=problems, warnings=_at(place, written.warnings))


def _at(place: str, problems: Sequence[Problem]) -> list[Problem]:
    return [p.model_copy(update={"path": place + p.path.removeprefix("recipe")}) for p in problems]


def parse_recipe(document: Any, lent: Set[str] = frozenset()) -> Written:
    """The recipe that a YAML document holds; `lent` are keys of it that only hold what others use by an alias.

    Raises:
        InputError: it holds something else.
    """
    if words := _other_document(document):
        raise InputError.at("recipe", words)
    keys = Keys(document, lent)
    plain, misplaced = unwrapped(keys.document)
    recipe, problems = _look(plain)
    if misplaced and not (plain.get("models") or plain.get("slices")):
        recipe = None  # of its models nothing more can be told
    return Written(recipe, [*keys.problems, *misplaced, *problems], keys.warnings)


def _other_document(document: Any) -> str | None:
    """What is wrong with a document that is no recipe."""
    if not isinstance(document, dict):
        return "is not a mergekit configuration: expected merge_method and models or slices"
    if "merge_method" not in document and {"apiVersion", "spec"} & document.keys():
        return "is the manifest of a search, not a recipe; run it with evomerge run"
    return foreign(document)


def _look(document: dict[Any, Any]) -> tuple[Recipe | None, list[Problem]]:
    """The recipe in `document`, and its mistakes. Those that can be put right stand in no other's way: of the recipe
    that is left a person hears at the same time."""
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
    if "parameters" in loc[:-1] and loc[:2] != _CHOSEN_AT:
        *place, name = _parameter(loc)
        holder = _found(document, tuple(place))
        method = METHODS.get(str(document.get("merge_method")))
        if name in holder and isinstance(name, str):
            holder[name] = method.defaults.get(name, 1.0) if method is not None else 1.0
            return True
    elif loc[:2] == _CHOSEN_AT:
        _found(document, ("tokenizer",)).pop("tokens", None)
        return True
    elif error["type"] in ("extra_forbidden", "literal_error") or loc[-1:] == ("pad_to_multiple_of",):
        _found(document, loc[:-1]).pop(loc[-1], None)  # by an alias, one thing may stand in two places
        return True
    return False


def _problem(error: ErrorDetails, document: Any) -> Problem:
    """One mistake. Within a parameter, where each form it might have had is told apart, the parameter is the place."""
    loc = error["loc"]
    if loc[:2] == _CHOSEN_AT:
        return Problem(path=_path(loc[:3], document), message=_NO_CHOICES if len(loc) == 2 else _NO_CHOICE)
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
        return "is not a key that is known here"
    if kind == "literal_error":
        near = _dtype(given) if loc[-1] in ("dtype", "out_dtype") else None
        allowed = f"allowed: {error.get('ctx', {}).get('expected')}"
        return f"{_shown(given)} is not known; {f'did you mean {near}?' if near else allowed}"
    if kind == "string_type":
        return _no_text(given, loc[-1])
    if kind in ("list_type", "dict_type", "model_type", "too_short"):
        return _no_holder(kind, given, _names(loc)[-1])
    if loc[-1:] == ("pad_to_multiple_of",):
        return f"{_shown(given)} is not a whole number of 1 or more"
    message = f"{error['msg'][0].lower()}{error['msg'][1:]}"
    return message if kind == "unsupported" else f"{message}, not {_shown(given)}"


def _dtype(given: Any) -> str | None:
    """The dtype that was meant by one that is not known."""
    if not isinstance(given, str):
        return None
    other_name = given.lower() if given.lower() in _DTYPES else None
    near = other_name or nearest(given, [*get_args(DTypeName), *_NOT_DONE]) or nearest(given, _DTYPES)
    meant = _DTYPES.get(str(near), near)
    return None if meant in _NOT_DONE else meant


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


def _names(loc: tuple[int | str, ...]) -> list[str]:
    return [part for part in loc if isinstance(part, str)]


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):  # a key that JSON has no form for, a date for one; a value that holds itself
        text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
