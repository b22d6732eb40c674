"""Recipes on their way to a person: with places instead of the manifest's names."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import yaml

from evomerge_contract.manifest import BASE, Base, EvoMerge
from evomerge_contract.methods import METHODS
from evomerge_contract.recipe import Recipe

_NONE: Mapping[str, "Seeded"] = MappingProxyType({})


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


class Seeded(NamedTuple):
    """A recipe, and the seed of its masks."""

    recipe: Recipe
    mask_seed: int


def recipe_text(recipe: Seeded, manifest: EvoMerge, folder: Path, earlier: Mapping[str, Seeded] = _NONE) -> str:
    """The recipe as YAML that can be rerun from `folder`: names of models replaced by where they lie.

    Winners of `earlier` stages that it is made of, by their names, are documents of their own before it, as
    mergekit-multi reads them.
    """
    spec = manifest.spec
    models: dict[str, Base] = {m.name: m for m in spec.models}
    if spec.base is not None:
        models[BASE] = spec.base
    needed = made_of(recipe.recipe, earlier)
    documents = [{"name": name} | portable_recipe(one.recipe, models, folder).plain() for name, one in needed.items()]
    documents.append(portable_recipe(recipe.recipe, models, folder).plain())
    return _comments([*needed.values(), recipe]) + yaml.safe_dump_all(
        documents, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120
    )


def made_of(recipe: Recipe, earlier: Mapping[str, Seeded]) -> dict[str, Seeded]:
    """Those of the winners of earlier stages that a recipe is made of, in their order."""
    names, found = set(recipe.named_models), {}
    for name, one in reversed(list(earlier.items())):
        if name in names:
            found[name] = one
            names.update(one.recipe.named_models)
    return dict(reversed(list(found.items())))


def _comments(recipes: Sequence[Seeded]) -> str:
    """How the recipes are carried out."""
    random = [one.mask_seed for one in recipes if METHODS[one.recipe.merge_method].random]
    seeds = list(dict.fromkeys(random))
    lines = [f"# evomerge merge{f' --seed {seeds[0]}' if seeds else ''} recipe.yaml OUT"]
    if len(seeds) > 1:
        listed = ", ".join(str(seed) for seed in random)
        lines.append(f"# the masks of the recipes had different seeds ({listed}), and here all have one: not the same")
    if any(one.recipe.config_source is not None for one in recipes):
        lines.append("# mergekit passes over config_source: its config is the base_model's")
    return "".join(f"{line}\n" for line in lines)


def _place(uri: str, folder: Path) -> str:
    if uri.startswith("file://"):
        return os.path.relpath(unquote(urlsplit(uri).path), folder.resolve())
    return uri.removeprefix("hf://")
