"""The tensors that come out, against mergekit on the same recipe: the corpus of parity/corpus.

`dtype: float32` makes mergekit compute in float32 as we do (its task-arithmetic family computes in the sources' dtype).
"""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from closeness import NORM_STEPS, OPERAND_STEPS, RESCALE_STEPS, apart, operands
from evomerge_contract.methods import EXTENSIONS, METHODS
from evomerge_contract.recipe import Recipe
from evomerge_worker.merge import Merger, TensorPlan, plan_merge
from evomerge_worker.merge.draws import Drawing, limit_of
from evomerge_worker.merge.methods.della import probabilities
from evomerge_worker.shards import Checkpoint
from merge_corpus import CORPUS
from oracle import Oracle
from tiny_models import FAMILIES, Tiny

MASK_SEED = 11
BY_NORMS = ("nuslerp", "multislerp", "karcher", "model_stock")
BY_DIVERGENCES = ("arcee_fusion",)
"""An element is taken or not by divergences, of which rounding errors are a large part where mergekit adds them up in
float32: it is asked in float64."""


@pytest.mark.parametrize("name", CORPUS)
def test_a_recipe_gives_what_mergekit_gives(oracle: Oracle, tiny: Tiny, tmp_path: Path, name: str) -> None:
    recipe = CORPUS[name].recipe
    method, wide = recipe["merge_method"], recipe.get("out_dtype") == "float32"
    norm_steps = NORM_STEPS["float32"] if method in BY_NORMS else RESCALE_STEPS if method == "della" else None
    sources, computed_in = CORPUS[name].checkpoints(tiny), "float64" if method in BY_DIVERGENCES else "float32"
    _check(oracle, CORPUS[name].over(sources), sources, tmp_path, norm_steps if wide else None, computed_in)


@pytest.mark.parametrize("computed_in", NORM_STEPS)
@pytest.mark.parametrize("name", [name for name, entry in CORPUS.items() if entry.recipe["merge_method"] in BY_NORMS])
def test_what_is_divided_by_norms_is_as_near_as_mergekits_sums_are_exact(
    oracle: Oracle, tiny: Tiny, tmp_path: Path, name: str, computed_in: str
) -> None:
    """Before anything is rounded to 16 bits: nearer to mergekit in float64 than in float32."""
    sources = CORPUS[name].checkpoints(tiny)
    recipe = CORPUS[name].over(sources) | {"out_dtype": "float32"}
    _check(oracle, recipe, sources, tmp_path, NORM_STEPS[computed_in], computed_in)


def _check(
    oracle: Oracle,
    recipe: dict[str, Any],
    sources: dict[str, Checkpoint],
    folder: Path,
    norm_steps: int | None,
    computed_in: str,
) -> None:
    """Carry the recipe out on both sides, on the other in `computed_in`."""
    plans = plan_merge(Recipe.model_validate(recipe), sources)
    masks = folder / "masks.safetensors"
    save_file(_masks(plans, sources), masks)
    oracle(ask="merge", recipe=recipe | {"dtype": computed_in}, out=str(folder / "out"), masks=str(masks))
    ours, theirs = dict(Merger(sources, MASK_SEED).merged(plans)), Checkpoint.open(folder / "out", "theirs")
    assert sorted(ours) == theirs.names
    for plan in plans:
        _compare(plan, ours[plan.name], theirs.tensor(plan.name), sources, norm_steps)


def _compare(
    plan: TensorPlan, ours: torch.Tensor, theirs: torch.Tensor, sources: dict[str, Checkpoint], norm_steps: int | None
) -> None:
    """Check one tensor."""
    if plan.method is None:  # a buffer of truth values, which mergekit merges as if they were weights
        assert torch.equal(ours, theirs.round().to(ours.dtype)), plan.name
        return
    assert ours.dtype == theirs.dtype
    largest = operands(plan, sources)
    if norm_steps is not None:  # what norms are wrong by, the whole result is
        largest = torch.maximum(largest, theirs.double().abs())
    found = apart(ours, theirs, largest, norm_steps or OPERAND_STEPS)
    assert found.numel() == 0 or float(found.max()) <= 1, plan.name


def _masks(plans: list[TensorPlan], sources: dict[str, Checkpoint]) -> dict[str, torch.Tensor]:
    """The masks that we draw for every tensor that is thinned out at random, and what they were drawn with."""
    masks = {}
    for plan in plans:
        if plan.method is None or plan.base is None or not METHODS[plan.method].random:
            continue
        origin = sources[plan.base.model].tensor(plan.base.tensor).float()
        for item in plan.inputs:
            density: Any = item.values["density"]
            drawing = Drawing(MASK_SEED, partial(getattr, sources[item.model], "fingerprint"))
            draws = drawing.of(item.tensor)
            chances, keep = torch.full_like(origin, density), None
            if "epsilon" in item.values:
                if not 0 < density < 1:
                    continue
                delta = sources[item.model].tensor(item.tensor).float() - origin
                rows = delta if delta.dim() > 1 else delta[None]
                chances = probabilities(rows, density, item.values["epsilon"]).view(delta.shape)
                keep = draws.below(chances)
            key = f"{item.model}|{plan.name}"
            drawn = draws.numbers(0, origin.numel(), origin.device).view(origin.shape)
            masks[key] = drawn < limit_of(density) if keep is None else keep
            masks[f"{key}|probability"] = chances
    return masks


def test_the_corpus_holds_every_method_parameter_and_family() -> None:
    assert len(CORPUS) >= 60
    given: dict[str, set[str]] = {}
    for entry in CORPUS.values():
        given.setdefault(entry.recipe["merge_method"], set()).update(*entry.settings())
    assert given.keys() == METHODS.keys()
    for method, known in METHODS.items():
        family = {"normalize", "rescale", "lambda", "int8_mask"} & known.switches.keys()
        assert {*known.real, *known.numerics} - {"lambda"} - EXTENSIONS <= given[method], method
        assert known.switches.keys() - family <= given[method], method
    assert set().union(*given.values()) >= {"normalize", "rescale", "lambda", "int8_mask"}
    families = {entry.family for entry in CORPUS.values()}
    assert families >= FAMILIES.keys() - {"bert", "deepseek_v3"}
    assert {(e.sources, e.recipe.get("out_dtype")) for e in CORPUS.values()} >= {
        (stored, out) for stored in ("float32", "bfloat16") for out in ("float32", "bfloat16")
    }
