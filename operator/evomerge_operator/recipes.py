"""Recipes on their way to a person: with places instead of the manifest's names."""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

from evomerge_contract.manifest import BASE, EvoMerge
from evomerge_contract.recipe import UNION, Recipe


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
    if recipe.tokenizer_source not in (None, UNION):
        plain["tokenizer_source"] = places[plain["tokenizer_source"]]
    return Recipe.model_validate(plain)


def recipe_text(recipe: Recipe, manifest: EvoMerge, folder: Path) -> str:
    """The recipe as YAML that can be rerun from `folder`: names of models replaced by where they lie."""
    spec = manifest.spec
    uris = {m.name: m.uri for m in spec.models} | ({BASE: spec.base.uri} if spec.base else {})
    plain = portable_recipe(recipe, uris, folder).plain()
    seed = f" --seed {spec.stages[0].search.seed}" if "dare" in recipe.merge_method else ""
    return f"# evomerge merge{seed} recipe.yaml OUT\n" + yaml.safe_dump(
        plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120
    )


def _place(uri: str, folder: Path) -> str:
    if uri.startswith("file://"):
        return os.path.relpath(unquote(urlsplit(uri).path), folder.resolve())
    return uri.removeprefix("hf://")
