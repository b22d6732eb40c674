"""Recipes on their way to a person: with places instead of the manifest's names."""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from evomerge_contract.recipe import Recipe


def portable_recipe(recipe: Recipe, uris: Mapping[str, str], folder: Path) -> Recipe:
    """The recipe with each model named as mergekit can find it from `folder`: a relative path, or hub id@revision.

    An `s3://` URI stays as it is; `evomerge merge` takes it, mergekit does not.
    """
    places = {name: _place(uri, folder) for name, uri in uris.items()}
    plain = recipe.plain()
    for entry in (*plain.get("models", []), *(s for part in plain.get("slices", []) for s in part["sources"])):
        entry["model"] = places[entry["model"]]
    if "base_model" in plain:
        plain["base_model"] = places[plain["base_model"]]
    return Recipe.model_validate(plain)


def _place(uri: str, folder: Path) -> str:
    if uri.startswith("file://"):
        return os.path.relpath(unquote(urlsplit(uri).path), folder.resolve())
    return uri.removeprefix("hf://")
