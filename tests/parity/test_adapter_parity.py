"""Models with LoRA adapters that PEFT has written, against mergekit, which lets PEFT merge them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge_contract.manifest import Storage
from evomerge_contract.recipe import Recipe
from evomerge_contract.task import Source
from evomerge_worker.errors import InputError
from evomerge_worker.merge import Merger, plan_merge
from evomerge_worker.shards import Checkpoint
from evomerge_worker.sources import source_folder
from evomerge_worker.store import Store
from oracle import Oracle
from tiny_models import Tiny

ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear modules": ("llama", {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 4, "lora_alpha": 8}),
    "rank-stabilised": ("llama", {"target_modules": "all-linear", "r": 4, "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "up_proj"],
            "r": 4,
            "rank_pattern": {"layers.1.mlp.up_proj": 2},
            "alpha_pattern": {"q_proj": 12},
        },
    ),
    "embeddings and head": ("llama", {"target_modules": ["embed_tokens", "lm_head", "o_proj"], "r": 4}),
    "saved modules": ("llama", {"target_modules": ["o_proj"], "r": 4, "modules_to_save": ["norm", "lm_head"]}),
    "biases": ("qwen2", {"target_modules": ["q_proj", "k_proj"], "r": 4, "bias": "lora_only"}),
    "turned around": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "r": 4, "fan_in_fan_out": True}),
    "fused": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"], "r": 4}),
    "tied embeddings": ("llama-tied", {"target_modules": ["embed_tokens"], "r": 4}),
    "saved embeddings, kept tied": (
        "llama-tied",
        {"target_modules": ["o_proj"], "r": 4, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
}


def test_embeddings_that_peft_unties_from_their_head_are_refused(oracle: Oracle, tiny: Tiny, tmp_path: Path) -> None:
    """It merges them into a model whose head is still that of before."""
    model, adapter = tiny("llama-tied", dtype="float32"), tmp_path / "adapter"
    config = {"target_modules": ["o_proj"], "r": 4, "modules_to_save": ["embed_tokens"]}
    oracle(ask="adapter", model=str(model), out=str(adapter), seed=3, config=config)
    source = Source(name="a", uri=model.as_uri(), adapter=adapter.as_uri())
    with pytest.raises(InputError, match=r"saves model\.embed_tokens\.weight whole, and the head"):
        source_folder(source, Store(Storage(), tmp_path / "cache"), code=False)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapted_model_is_merged_as_mergekit_does(oracle: Oracle, tiny: Tiny, tmp_path: Path, name: str) -> None:
    family, config = ADAPTERS[name]
    model, other = tiny(family, dtype="float32"), tiny(family, seed=1, dtype="float32")
    adapter = tmp_path / "adapter"
    oracle(ask="adapter", model=str(model), out=str(adapter), seed=3, config=config)
    adapted = f"{model}+{adapter}"
    models = [{"model": m, "parameters": {"weight": w}} for m, w in ((adapted, 0.75), (str(other), 0.25))]
    recipe = Recipe.model_validate({"merge_method": "linear", "models": models, "dtype": "float32"})
    oracle(ask="merge", recipe=recipe.plain(), out=str(tmp_path / "out"), masks=None, adapted=str(tmp_path / "merged"))
    source = Source(name="a", uri=model.as_uri(), adapter=adapter.as_uri())
    folder = source_folder(source, Store(Storage(), tmp_path / "cache"), code=False)
    sources = {adapted: Checkpoint.open(folder, adapted), str(other): Checkpoint.open(other, str(other))}
    ours = dict(Merger(sources, 0).merged(plan_merge(recipe, sources)))
    theirs = Checkpoint.open(tmp_path / "out", "theirs")
    assert sorted(ours) == theirs.names
    changed = 0
    for tensor in theirs.names:
        bound = 4 * torch.finfo(torch.float32).eps * theirs.tensor(tensor).double().abs().clamp(min=0.1)
        assert bool(((ours[tensor].double() - theirs.tensor(tensor).double()).abs() <= bound).all()), tensor
        changed += not torch.equal(sources[adapted].tensor(tensor), Checkpoint.open(model, "m").tensor(tensor))
    assert changed > 0
