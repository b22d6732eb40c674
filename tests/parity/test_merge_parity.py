"""The tensors that come out, against mergekit on the same recipe.

`dtype: float32` makes mergekit compute in float32 as we do (its task-arithmetic family computes in the sources' dtype).
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from evomerge_contract.recipe import Recipe
from evomerge_worker.merge import Merger, TensorPlan, plan_merge
from evomerge_worker.merge.draws import Draws, limit_of
from evomerge_worker.merge.run import CPU
from evomerge_worker.shards import Checkpoint
from oracle import Oracle
from tiny_models import Tiny

MASK_SEED = 11
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

FILTERED = [{"filter": "attn", "value": 0.3}, {"filter": "norm", "value": 1.4}, {"value": [0.9, 0.1, 0.6]}]
RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "a": {"weight": 0.3}, "b": {"weight": FILTERED}},
    "linear-sum": {"merge_method": "linear", "a": {"weight": 0.3}, "b": {"weight": -0.2}, "all": {"normalize": False}},
    "slerp": {
        "merge_method": "slerp",
        "base_model": "a",
        "all": {"t": [{"filter": "mlp", "value": 0.7}, {"value": [0, 1]}]},
    },
    "task_arithmetic": {"merge_method": "task_arithmetic", "a": {"weight": FILTERED}, "b": {"weight": -0.4}},
    "task_arithmetic-normalized": {
        "merge_method": "task_arithmetic",
        "a": {"weight": 0.8},
        "b": {"weight": 0.7},
        "all": {"normalize": True, "lambda": 0.9},
    },
    "ties": {
        "merge_method": "ties",
        "a": {"weight": 0.8, "density": [0.2, 0.9]},
        "b": {"weight": FILTERED, "density": 0.5},
    },
    "ties-rescaled": {
        "merge_method": "ties",
        "a": {"weight": 0.8, "density": 0.3},
        "b": {"weight": 0.7, "density": 0.7},
        "all": {"normalize": False, "rescale": True, "lambda": 1.2, "int8_mask": True},
    },
    "ties-of-one": {"merge_method": "ties", "a": {"weight": 0.8, "density": 0.3}, "b": {"weight": 0.0, "density": 0.0}},
    "dare_ties": {
        "merge_method": "dare_ties",
        "a": {"weight": 0.8, "density": 0.4},
        "b": {"weight": FILTERED, "density": 0.6},
    },
    "dare_ties-normalized": {
        "merge_method": "dare_ties",
        "a": {"weight": 0.8, "density": [0.1, 1.0]},
        "b": {"weight": 0.7, "density": 0.6},
        "all": {"normalize": True, "rescale": False},
    },
    "dare_linear": {
        "merge_method": "dare_linear",
        "a": {"weight": 0.8, "density": 0.4},
        "b": {"weight": -0.5, "density": 0.0},
    },
}
NO_BASE = ("linear", "slerp")


def _recipe(name: str, out_dtype: str) -> Recipe:
    keys = dict(RECIPES[name])
    models = [{"model": m, "parameters": keys.pop(m, None)} for m in ("a", "b")]
    if keys["merge_method"] not in NO_BASE:
        keys["base_model"] = "base"
    parameters = keys.pop("all", None)
    return Recipe.model_validate(
        {**keys, "models": models, "parameters": parameters, "dtype": "float32", "out_dtype": out_dtype}
    )


def _sources(tiny: Tiny, family: str, dtype: str) -> dict[str, Checkpoint]:
    """By path, which is what both sides call them."""
    folders = [tiny(family, seed=seed, dtype=dtype) for seed in range(3)]
    return {str(folder): Checkpoint.open(folder, str(folder)) for folder in folders}


def _with_paths(recipe: Recipe, paths: dict[str, str]) -> Recipe:
    """The recipe with every model named by its path."""
    plain = recipe.plain()
    named = [*plain.get("models", []), *(s for one in plain.get("slices", []) for s in one["sources"])]
    for entry in named:
        entry["model"] = paths[entry["model"]]
    if "base_model" in plain:
        plain["base_model"] = paths[plain["base_model"]]
    return Recipe.model_validate(plain)


def _masks(plans: list[TensorPlan], sources: dict[str, Checkpoint], file: Path) -> dict[str, float]:
    """Write the masks that we draw for every thinned tensor; return the densities they were drawn for."""
    masks, densities = {}, {}
    for plan in plans:
        for item in plan.inputs:
            density = item.values.get("density", 1.0)
            shape = sources[item.model].shape(item.tensor)
            key = f"{item.model}|{plan.name}"
            draws = Draws.of(MASK_SEED, sources[item.model].fingerprint, item.tensor)
            masks[key] = (draws.numbers(0, math.prod(shape), CPU) < limit_of(density)).view(shape)
            densities[key] = density
    save_file(masks, file)
    return densities


def _steps(dtype: torch.dtype, value: torch.Tensor) -> torch.Tensor:
    """The distance from each value to the next larger one of its dtype, in float64."""
    info = torch.finfo(dtype)
    exponent = torch.floor(torch.log2(value.double().abs().clamp(min=info.smallest_normal)))
    return torch.exp2(exponent) * info.eps


def _compare(
    ours: dict[str, torch.Tensor], theirs: Checkpoint, sources: dict[str, Checkpoint], scale: float = 1.0
) -> None:
    """Equal to within one rounding step of the output.

    Where the operands cancel, a step of a tiny result is finer than float32 resolves them: there the sums of both sides
    may differ by a few of the operands' own float32 steps. What is left of a task vector where little is kept is
    `scale` times as large, and so are its steps.
    """
    assert sorted(ours) == theirs.names
    for name, tensor in ours.items():
        other = theirs.tensor(name)
        assert tensor.dtype == other.dtype
        operands = torch.stack([c.tensor(name).double().abs() for c in sources.values() if name in c]).sum(0)
        allowed = torch.maximum(_steps(tensor.dtype, other), 4 * _steps(torch.float32, scale * operands))
        off = (tensor.double() - other.double()).abs() / allowed
        assert float(off.max()) <= 1, (
            name,
            float(off.max()),
            int((off > 1).sum()),
            tensor.flatten()[off.argmax()],
            other.flatten()[off.argmax()],
            operands.flatten()[off.argmax()],
        )


@pytest.mark.parametrize("name", RECIPES)
def test_every_method_gives_what_mergekit_gives(oracle: Oracle, tiny: Tiny, tmp_path: Path, name: str) -> None:
    _check(oracle, _sources(tiny, "llama", "bfloat16"), tmp_path, name, "bfloat16")


@pytest.mark.parametrize("out_dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["linear", "slerp", "ties", "dare_ties"])
def test_other_output_dtypes_too(oracle: Oracle, tiny: Tiny, tmp_path: Path, name: str, out_dtype: str) -> None:
    _check(oracle, _sources(tiny, "llama", "float32"), tmp_path, name, out_dtype)


@pytest.mark.parametrize("family", ["llama-tied", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gpt2", "phi3"])
def test_other_families_too(oracle: Oracle, tiny: Tiny, tmp_path: Path, family: str) -> None:
    _check(oracle, _sources(tiny, family, "bfloat16"), tmp_path, "ties", "bfloat16")


def _check(oracle: Oracle, sources: dict[str, Checkpoint], folder: Path, name: str, out_dtype: str) -> None:
    recipe = _with_paths(_recipe(name, out_dtype), dict(zip(("base", "a", "b"), sources, strict=True)))
    plans = plan_merge(recipe, sources)
    densities = _masks(plans, sources, folder / "masks.safetensors")
    oracle(
        ask="merge",
        recipe=recipe.plain(),
        out=str(folder / "out"),
        masks=str(folder / "masks.safetensors"),
        densities=densities,
    )
    kept = min((d for d in densities.values() if d > 0), default=1.0) if plans[0].shared.get("rescale") else 1.0
    _compare(
        dict(Merger(sources, MASK_SEED).merged(plans)), Checkpoint.open(folder / "out", "theirs"), sources, 1 / kept
    )
