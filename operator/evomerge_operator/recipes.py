"""Recipes on their way to a person: with places instead of the manifest's names."""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

from evomerge_contract.manifest import BASE, Base, EvoMerge
from evomerge_contract.methods import METHODS
from evomerge_contract.recipe import Recipe


def portable_recipe(recipe: Recipe, models: Mapping[str, Base], folder: Path) -> Recipe:
    """The recipe with each model named as mergekit can find it from `folder`: a relative path, or hub id@revision, with
    +adapter behind it where the model has one.

    An `s3://` URI stays as it is; `evomerge merge` takes it, mergekit does not.
    """
    places = {
        name: "+".join(_place(uri, folder) for uri in (model.uri, model.adapter) if uri is not None)
        for name, model in models.items()
    }
    return recipe.renamed(places)


def recipe_text(recipe: Recipe, manifest: EvoMerge, folder: Path, mask_seed: int) -> str:
    """The recipe as YAML that can be rerun from `folder`: names of models replaced by where they lie."""
    spec = manifest.spec
    models: dict[str, Base] = {m.name: m for m in spec.models}
    if spec.base is not None:
        models[BASE] = spec.base
    plain = portable_recipe(recipe, models, folder).plain()
    seed = f" --seed {mask_seed}" if METHODS[recipe.merge_method].random else ""
    note = (
        "" if recipe.config_source is None else "# mergekit passes over config_source: its config is the base_model's\n"
    )
    return f"# evomerge merge{seed} recipe.yaml OUT\n{note}" + yaml.safe_dump(
        plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120
    )


def _place(uri: str, folder: Path) -> str:
    if uri.startswith("file://"):
        return os.path.relpath(unquote(urlsplit(uri).path), folder.resolve())
    return uri.removeprefix("hf://")
