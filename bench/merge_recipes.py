"""The merges that the benches of merging time: three experts of one base, and how a method is asked for them."""

from pathlib import Path
from typing import Any

from random_models import write_base, write_expert

EXPERTS = ("first", "second", "third")
METHODS = ("linear", "task_arithmetic", "slerp", "dare_ties", "ties")  # by how long mergekit takes


def write_models(folder: Path) -> dict[str, Path]:
    """A base of 0.85 B parameters and three experts in `folder` (1.7 GB each), by name; those there are kept."""
    folders = {name: folder / name for name in ("base", *EXPERTS)}
    if not folders["base"].exists():
        write_base(folders["base"], "0.85B")
    for seed, name in enumerate(EXPERTS, start=1):
        if not folders[name].exists():
            write_expert(folders[name], folders["base"], seed)
    return folders


def recipe(method: str, names: dict[str, str], density: float = 0.5) -> dict[str, Any]:
    """The recipe of a method over the models `names` (what the recipe calls base and experts)."""
    experts = EXPERTS[:1] if method == "slerp" else EXPERTS
    sparse = {"density": density} if method in ("ties", "dare_ties") else {}
    weights = {} if method == "slerp" else {"weight": 0.3}
    models: list[dict[str, Any]] = [{"model": names[e], "parameters": weights | sparse} for e in experts]
    plain: dict[str, Any] = {"merge_method": method, "models": models, "dtype": "float32", "out_dtype": "bfloat16"}
    if method == "slerp":
        plain |= {"models": [{"model": names["base"]}, {"model": names["first"]}], "parameters": {"t": 0.4}}
    if method != "linear":
        plain["base_model"] = names["base"]
    return plain
