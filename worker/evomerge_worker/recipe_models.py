"""What a recipe means by the name of a model: a folder, a place in S3, a model of the hub; perhaps with an adapter."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote, urlsplit

from evomerge_contract.task import Source
from evomerge_worker.errors import InputError

_PLACES = ("s3:", "hf:", "file:")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_PINNED = re.compile(r"[\w.-]+/[\w.-]+@.+")
_FORMS = "a model is a folder, s3://…, or org/name@commit"


def source_of(model: str, folder: Path, made: Mapping[str, Path] = MappingProxyType({})) -> Source:
    """What a recipe that lies in `folder` means by `model`: a model, or one with a LoRA adapter, model+adapter.

    `made` are the results of other recipes of its file, by their names.

    Raises:
        InputError: it means nothing: no such folder.
    """
    whole, plus, adapter = model.rpartition("+")
    if (bare := made.get(whole if plus else model)) is not None:
        source = Source(name=model, uri=bare.resolve().as_uri())
        return source.model_copy(update={"adapter": _uri(model, adapter, folder)}) if plus else source
    if not plus or _exists(_path(model, folder)):
        return Source(name=model, uri=_uri(model, model, folder))
    if not whole or not adapter:
        raise InputError.at(model, "a model and its adapter are written as model+adapter, and here one is missing")
    if "+" in whole and not whole.startswith(_PLACES) and not _exists(_path(whole, folder)):
        raise InputError.at(
            model, "names more than one adapter; a model can have one: merge the first with PEFT, and name the result"
        )
    return Source(name=model, uri=_uri(model, whole, folder), adapter=_uri(model, adapter, folder))


def named_in_recipe(source: Source) -> str:
    """The name by which a recipe means a model, wherever the recipe lies."""
    parts = (source.uri, *([] if source.adapter is None else [source.adapter]))
    return "+".join(uri.removeprefix("hf://") if uri.startswith("hf://") else _local(uri) for uri in parts)


def _local(uri: str) -> str:
    return unquote(urlsplit(uri).path) if uri.startswith("file://") else uri


def _uri(model: str, name: str, folder: Path) -> str:
    """A model or adapter as a URI: as it is, a folder relative to the recipe, or else a model of the hub."""
    path = _path(name, folder)
    if not name.strip():
        raise InputError.at(model or '""', f"a model's name is empty; {_FORMS}")
    if name.startswith(_PLACES):
        return name
    if _exists(path):
        return path.resolve().as_uri()
    if "://" in name:
        raise InputError.at(model, f"{name.partition('://')[0]}:// is no place that models are read from; {_FORMS}")
    if _PINNED.fullmatch(name) or _HUB_NAME.fullmatch(name):
        return f"hf://{name}"
    raise InputError.at(model, f"there is no folder {_shown(path)}; {_FORMS}")


def _path(name: str, folder: Path) -> Path:
    try:
        return folder / Path(name).expanduser()
    except RuntimeError:  # the home of a user that is not there
        return folder / name


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, may not be looked at; a NUL in it
        return False


def _shown(path: Path) -> str:
    text = str(path).replace("\0", "\\0")
    return text if len(text) <= 200 else f"{text[:199]}…"
