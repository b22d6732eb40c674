"""Sources of every make: experts, shards, dtypes that differ, heads that some have and some lack."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from evomerge_contract.recipe import Recipe
from evomerge_worker.families import LiveModel
from evomerge_worker.merge import export_checkpoint
from evomerge_worker.shards import Checkpoint
from tiny_models import Tiny, write_tensors

CPU = torch.device("cpu")
MOE = ("mixtral", "deepseek_v3")


def _linear(**keys: Any) -> Recipe:
    models = [{"model": name, "parameters": {"weight": weight}} for name, weight in (("a", 0.25), ("b", 0.75))]
    return Recipe.model_validate({"merge_method": "linear", "models": models, **keys})


def _sources(tiny: Tiny, family: str, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Checkpoint]:
    return {
        "a": Checkpoint.open(tiny(family, seed=1, **a), "a"),
        "b": Checkpoint.open(tiny(family, seed=2, **b), "b"),
    }


def _assert_live(recipe: Recipe, sources: dict[str, Checkpoint], folder: Path) -> dict[str, torch.Tensor]:
    """The state of the live model, which is that of the export in `folder`, loaded without a tensor missing or left."""
    from transformers import AutoModelForCausalLM

    live = LiveModel.open(sources["a"], device=CPU)
    live.merge(recipe, sources, 0)
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"]
    ours: dict[str, torch.Tensor] = live.model.state_dict()
    theirs = loaded.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name
    return ours


@pytest.mark.parametrize("family", MOE)
def test_each_expert_is_merged_with_its_own_counterpart(tiny: Tiny, tmp_path: Path, family: str) -> None:
    sources = _sources(tiny, family, {}, {})
    export_checkpoint(_linear(), sources, tmp_path / "out", mask_seed=0)
    out = Checkpoint.open(tmp_path / "out", "out")
    assert out.names == sources["a"].names
    experts = [name for name in out.names if ".experts." in name]
    assert len(experts) >= 24
    for name in experts:
        mixed = sources["a"].tensor(name).float() * 0.25 + sources["b"].tensor(name).float() * 0.75
        assert torch.equal(out.tensor(name), mixed.bfloat16())


@pytest.mark.parametrize("family", [*MOE, "llama", "llama-tied"])
def test_shards_make_no_difference(tiny: Tiny, tmp_path: Path, family: str) -> None:
    """Neither those that are read nor those that are written."""
    whole = _sources(tiny, family, {}, {})
    sharded = _sources(tiny, family, {"max_shard_size": "20KB"}, {"max_shard_size": "30KB"})
    assert len(list(sharded["a"].folder.glob("*.safetensors"))) > 2
    export_checkpoint(_linear(), whole, tmp_path / "one", mask_seed=0)
    export_checkpoint(_linear(), sharded, tmp_path / "two", mask_seed=0, max_shard_bytes=20_000)
    one, two = (Checkpoint.open(tmp_path / name, name) for name in ("one", "two"))
    assert (tmp_path / "two" / "model.safetensors.index.json").exists()
    assert one.names == two.names
    assert all(torch.equal(one.tensor(name), two.tensor(name)) for name in one.names)
    _assert_live(_linear(), sharded, tmp_path / "two")


@pytest.mark.parametrize("family", [*MOE, "llama"])
@pytest.mark.parametrize(("a", "b"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "bfloat16")])
def test_sources_of_different_dtypes_give_one_that_holds_both(
    tiny: Tiny, tmp_path: Path, family: str, a: str, b: str
) -> None:
    sources = _sources(tiny, family, {"dtype": a}, {"dtype": b})
    export_checkpoint(_linear(), sources, tmp_path / "out", mask_seed=0)
    out = Checkpoint.open(tmp_path / "out", "out")
    assert out.config["dtype"] == "float32"
    for name in out.names:
        mixed = sources["a"].tensor(name).double() * 0.25 + sources["b"].tensor(name).double() * 0.75
        assert out.tensor(name).dtype == torch.float32
        assert torch.allclose(out.tensor(name).double(), mixed, rtol=1e-6, atol=1e-7)
    _assert_live(_linear(), sources, tmp_path / "out")


@pytest.mark.parametrize("family", [*MOE, "llama"])
def test_an_expert_router_of_another_dtype_keeps_its_values(tiny: Tiny, tmp_path: Path, family: str) -> None:
    """Some checkpoints hold norms or routers in float32 among bfloat16: all are loaded in the dtype of most."""
    sources = _sources(tiny, family, {}, {})
    for name, checkpoint in list(sources.items()):
        folder = Path(shutil.copytree(checkpoint.folder, tmp_path / name))
        tensors = load_file(folder / "model.safetensors")
        wide = {n: t.float() for n, t in tensors.items() if "norm" in n or "gate.weight" in n}
        write_tensors(folder, tensors | wide, config=checkpoint.config)
        sources[name] = Checkpoint.open(folder, name)
    export_checkpoint(_linear(), sources, tmp_path / "out", mask_seed=0)
    out = Checkpoint.open(tmp_path / "out", "out")
    assert out.tensor("model.norm.weight").dtype == torch.float32
    assert out.config["dtype"] == "bfloat16"
    _assert_live(_linear(), sources, tmp_path / "out")


@pytest.mark.parametrize("holders", ["a", "b", "ab"])
def test_slices_of_tied_models_with_and_without_their_heads(tiny: Tiny, tmp_path: Path, holders: str) -> None:
    """The embeddings are the first slice's, and the head is tied to them, whoever holds it."""
    sources = _sources(tiny, "llama-tied", {}, {})
    for name in holders:
        folder = Path(shutil.copytree(sources[name].folder, tmp_path / name))
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        write_tensors(folder, tensors, config=sources[name].config)
        sources[name] = Checkpoint.open(folder, name)
    slices = [{"sources": [{"model": n, "layer_range": r}]} for n, r in (("a", [0, 3]), ("b", [1, 4]))]
    recipe = Recipe.model_validate({"merge_method": "linear", "slices": slices, "parameters": {"weight": 1}})
    export_checkpoint(recipe, sources, tmp_path / "out", mask_seed=0)
    state = _assert_live(recipe, sources, tmp_path / "out")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(state[name], sources["a"].tensor("model.embed_tokens.weight"))
