"""Configurations of other tools that merge models, told by their keys: whose they are, and what to write here."""

from collections.abc import Collection, Mapping
from typing import Any

_MERGENETIC = {"pop_size", "n_iter", "run_id", "n_samples", "path_to_store_merged_model", "path_to_store_config"}
_MANIFEST = "write a manifest for evomerge run: models go to spec.models, base_model to spec.base"

MOE = (
    "is a configuration of mergekit-moe, which puts models side by side as experts behind a router; here weights are "
    'merged: write merge_method, and below models a line "- model: NAME" for each source_model'
)
EVOLVE = (
    f"is a configuration of mergekit-evolve; {_MANIFEST}, merge_method to spec.stages[0].parameterSpace.method, "
    "layer_granularity and filters to its groups, tasks to spec.evaluation.objectives"
)
MERGENETIC = (
    f"is a configuration of mergenetic; {_MANIFEST}, pop_size to spec.stages[0].search.population, pop_size times "
    "n_iter to its candidates, tasks and datasets to spec.evaluation.objectives"
)
MULTI = "recipes, as mergekit-multi reads them; carry them out with evomerge merge"


def foreign(document: Mapping[Any, Any]) -> str | None:
    """Whose configuration `document` is and what to write here; None if it may be a recipe or a manifest."""
    if "merge_method" in document or "spec" in document:
        return None
    if "experts" in document:
        return MOE
    if "genome" in document:
        return EVOLVE
    return MERGENETIC if len(_MERGENETIC & document.keys()) > 1 else None


def several(count: int, keys: Collection[Collection[str]]) -> str:
    """What is said of a file of `count` YAML documents with these keys, where one is expected."""
    if any("merge_method" in of_one for of_one in keys):
        return f"holds {count} {MULTI}"
    return f"holds {count} YAML documents, divided by ---; write each into a file of its own"
