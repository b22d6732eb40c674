"""The merges that the benches of merging time: three experts of one base, and how a method is asked for them."""

from pathlib import Path
from typing import Any

from random_models import write_base, write_expert

from evomerge_contract.methods import METHODS

EXPERTS = ("first", "second", "third")
TIMED = ("linear", "task_arithmetic", "slerp", "dare_ties", "ties")  # by how long mergekit takes
WAYS: dict[str, tuple[str, dict[str, bool]]] = {name: (name, {}) for name in METHODS} | {
    "ties-rescaled": ("ties", {"rescale": True}),
    "nuslerp-rows": ("nuslerp", {"nuslerp_flatten": False}),
    "nuslerp-columns": ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    "model_stock-rows": ("model_stock", {"filter_wise": True}),
}
"""Every method, and what is computed in another way: the method's name and its switches."""


def write_models(folder: Path) -> dict[str, Path]:
    """A base of 0.85 B parameters and three experts in `folder` (1.7 GB each), by name; those there are kept."""
    folders = {name: folder / name for name in ("base", *EXPERTS)}
    if not folders["base"].exists():
        write_base(folders["base"], "0.85B")
    for seed, name in enumerate(EXPERTS, start=1):
        if not folders[name].exists():
            write_expert(folders[name], folders["base"], seed)
    return folders


def recipe(way: str, names: dict[str, str], density: float = 0.5) -> dict[str, Any]:
    """The recipe of one of WAYS over the models `names` (what the recipe calls base and experts)."""
    name, switches = WAYS[way]
    method = METHODS[name]
    values = {"weight": 0.3, "density": density, "scale": 1.1, "t": 0.4, "select_topk": density}
    of_model = {key: value for key, value in values.items() if key in method.per_model}
    of_all = {key: value for key, value in values.items() if key in method.shared}
    models: list[dict[str, Any]] = [{"model": names[e], "parameters": of_model} for e in EXPERTS[: method.most]]
    if method.base == "start":
        models.insert(0, {"model": names["base"]})
    plain: dict[str, Any] = {"merge_method": name, "models": models, "dtype": "float32", "out_dtype": "bfloat16"}
    if parameters := of_all | switches:
        plain["parameters"] = parameters
    if method.needs_base_model:
        plain["base_model"] = names["base"]
    return plain
