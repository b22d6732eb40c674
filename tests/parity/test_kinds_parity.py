"""Sources of every make, against mergekit: shards, dtypes that differ, experts."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from as_published import predicting_on
from evomerge_contract.recipe import Recipe
from evomerge_worker.merge import Merger, export_checkpoint, plan_merge
from evomerge_worker.shards import Checkpoint
from oracle import Oracle
from tiny_models import Tiny

KINDS: dict[str, list[dict[str, Any]]] = {
    "shards": [{"max_shard_size": "20KB"}, {"max_shard_size": "40KB"}, {}],
    "dtypes": [{"dtype": "bfloat16"}, {"dtype": "float32"}, {"dtype": "float16"}],
}


def _sources(folders: list[Path]) -> dict[str, Checkpoint]:
    return {str(folder): Checkpoint.open(folder, str(folder)) for folder in folders}


def _assert_equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """To within a few steps of float32."""
    bound = 4 * torch.finfo(torch.float32).eps * theirs.double().abs().clamp(min=0.1)
    assert bool(((ours.double() - theirs.double()).abs() <= bound).all())


@pytest.mark.parametrize("name", KINDS)
def test_a_merge_of_such_sources_is_mergekits(oracle: Oracle, tiny: Tiny, tmp_path: Path, name: str) -> None:
    sources = _sources([tiny(seed=seed, **options) for seed, options in enumerate(KINDS[name])])
    base, *models = sources
    recipe = Recipe.model_validate(
        {
            "merge_method": "ties",
            "base_model": base,
            "models": [{"model": m, "parameters": {"weight": [0.5, 1], "density": 0.5}} for m in models],
            "dtype": "float32",
        }
    )
    oracle(ask="merge", recipe=recipe.plain(), out=str(tmp_path / "out"), masks=None)
    theirs, ours = (
        Checkpoint.open(tmp_path / "out", "theirs"),
        dict(Merger(sources, 0).merged(plan_merge(recipe, sources))),
    )
    assert sorted(ours) == theirs.names
    for tensor in theirs.names:
        _assert_equal(ours[tensor], theirs.tensor(tensor))


def _linear(sources: dict[str, Checkpoint], weight: Any = (0.25, 1)) -> Recipe:
    models = [{"model": m, "parameters": {"weight": w}} for m, w in zip(sources, (list(weight), 0.75), strict=True)]
    return Recipe.model_validate({"merge_method": "linear", "models": models, "dtype": "float32"})


@pytest.mark.parametrize("filters", [(), ("self_attn", "mlp"), ("experts.gate_up_proj", "mlp.gate"), ("down_proj",)])
def test_mixtrals_experts_are_merged_as_mergekit_does(
    oracle: Oracle, tiny: Tiny, tmp_path: Path, filters: tuple[str, ...]
) -> None:
    """mergekit 0.1.5 writes them fused, as they are in memory, and we as they lie on disk: one model for both.

    Filters ask by the names that mergekit has for them.
    """
    from transformers import AutoModelForCausalLM

    sources = _sources([tiny("mixtral", seed=1, max_shard_size="20KB"), tiny("mixtral", seed=2)])
    recipe = _linear(sources)
    if filters:
        weight = [{"filter": f, "value": 0.1 + 0.4 * i} for i, f in enumerate(filters)]
        recipe = _linear(sources, [*weight, {"value": 0.7}])
    oracle(ask="merge", recipe=recipe.plain(), out=str(tmp_path / "theirs"), masks=None)
    export_checkpoint(recipe, sources, tmp_path / "ours", mask_seed=0)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(tmp_path / side).state_dict() for side in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for tensor, value in ours.items():
        _assert_equal(value, theirs[tensor])


def test_what_mergekit_keeps_of_deepseek_is_merged_as_it_does(oracle: Oracle, tiny: Tiny, tmp_path: Path) -> None:
    """mergekit 0.1.5 does not know the family: it loses what not every layer has, the experts and the dense layer."""
    sources = _sources([tiny("deepseek_v3", seed=1), tiny("deepseek_v3", seed=2)])
    recipe = _linear(sources)
    oracle(ask="merge", recipe=recipe.plain(), out=str(tmp_path / "out"), masks=None)
    theirs, ours = (
        Checkpoint.open(tmp_path / "out", "theirs"),
        dict(Merger(sources, 0).merged(plan_merge(recipe, sources))),
    )
    lost = set(ours) - set(theirs.names)
    assert lost
    assert all(".mlp." in name for name in lost)
    for tensor in theirs.names:
        _assert_equal(ours[tensor], theirs.tensor(tensor))


def test_a_layer_that_predicts_further_tokens_stands_in_no_ones_gradient(
    oracle: Oracle, tiny: Tiny, tmp_path: Path
) -> None:
    """mergekit counts layers as config.json does, and leaves the layer behind, which is carried along here."""
    folders = [predicting_on(tiny("deepseek_v3", seed=seed), tmp_path / str(seed)) for seed in (1, 2)]
    sources = _sources(folders)
    recipe = _linear(sources)
    oracle(ask="merge", recipe=recipe.plain(), out=str(tmp_path / "out"), masks=None)
    theirs, ours = (
        Checkpoint.open(tmp_path / "out", "theirs"),
        dict(Merger(sources, 0).merged(plan_merge(recipe, sources))),
    )
    assert not [name for name in theirs.names if name.startswith("model.layers.4.")]
    for tensor in theirs.names:
        _assert_equal(ours[tensor], theirs.tensor(tensor))


@pytest.mark.parametrize("kinds", [("llama-tied", "llama"), ("llama", "llama-tied")])
def test_a_tied_models_embeddings_are_its_head_to_mergekit_too(
    oracle: Oracle, tiny: Tiny, tmp_path: Path, kinds: tuple[str, str]
) -> None:
    """It leaves config.json saying that a head is tied which is not."""
    sources = _sources([tiny(kind, seed=seed) for seed, kind in enumerate(kinds, 1)])
    weight = [{"filter": "lm_head", "value": 0.5}, {"value": [0.25, 1]}]
    recipe = _linear(sources, weight)
    oracle(ask="merge", recipe=recipe.plain(), out=str(tmp_path / "out"), masks=None)
    theirs, ours = (
        Checkpoint.open(tmp_path / "out", "theirs"),
        dict(Merger(sources, 0).merged(plan_merge(recipe, sources))),
    )
    assert sorted(ours) == theirs.names
    for tensor in theirs.names:
        _assert_equal(ours[tensor], theirs.tensor(tensor))


def test_fused_and_single_experts_are_merged_as_mergekit_does(oracle: Oracle, tiny: Tiny, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    fused = Path(shutil.copytree(tiny("mixtral", seed=2), tmp_path / "fused"))
    state = AutoModelForCausalLM.from_pretrained(fused).state_dict()
    save_file({name: tensor.clone() for name, tensor in state.items()}, fused / "model.safetensors")
    sources = _sources([tiny("mixtral", seed=1), fused])
    recipe = _linear(sources, [{"filter": "experts.down_proj", "value": 0.5}, {"value": 0.25}])
    oracle(ask="merge", recipe=recipe.plain(), out=str(tmp_path / "theirs"), masks=None)
    export_checkpoint(recipe, sources, tmp_path / "ours", mask_seed=0)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(tmp_path / side).state_dict() for side in ("ours", "theirs"))
    for tensor, value in ours.items():
        _assert_equal(value, theirs[tensor])


def test_the_config_of_the_base_is_what_mergekit_gives_models_that_differ(
    oracle: Oracle, tiny: Tiny, tmp_path: Path
) -> None:
    """It does not ask; here a recipe says so, in a key that mergekit passes over."""
    new = {"sliding_window": None, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    sources = _sources([tiny("mistral", seed=1, sliding_window=16), tiny("mistral", seed=2, **new)])
    first = next(iter(sources))  # without a base_model, mergekit takes the config of any
    recipe = _linear(sources).model_copy(update={"config_source": first, "base_model": first})
    oracle(ask="merge", recipe=recipe.plain(), out=str(tmp_path / "theirs"), masks=None)
    export_checkpoint(recipe, sources, tmp_path / "ours", mask_seed=0)
    theirs, ours = (Checkpoint.open(tmp_path / side, side) for side in ("theirs", "ours"))
    for key in ("sliding_window", "rope_parameters", "rms_norm_eps", "num_hidden_layers"):
        assert ours.config[key] == theirs.config[key]
    for tensor in theirs.names:
        _assert_equal(ours.tensor(tensor), theirs.tensor(tensor))
