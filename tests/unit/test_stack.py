"""A live model whose layers are put into another order for each candidate: built once, and mapped from the sources."""

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge_contract.recipe import Recipe
from evomerge_worker.families import LiveModel
from evomerge_worker.merge import export_checkpoint
from evomerge_worker.prepare.flow import flow_of
from evomerge_worker.shards import Checkpoint
from flow_recipes import folded
from tiny_models import Tiny

CPU = torch.device("cpu")
PATHS = [
    [("a", 0), ("b", 1), ("b", 1), ("a", 3)],
    [("a", 0), ("a", 1), ("b", 0), ("b", 2), ("a", 2), ("b", 3), ("a", 3)],
    [("a", 0), ("a", 3)],
    [("a", 0), ("b", 1), ("b", 2), ("a", 2), ("a", 3)],
]


def _sources(tiny: Tiny, family: str, **config: Any) -> dict[str, Checkpoint]:
    return {name: Checkpoint.open(tiny(family, seed=seed, **config), name) for name, seed in (("a", 1), ("b", 2))}


def _recipe(sources: dict[str, Checkpoint], path: list[tuple[str, int]], scale: float) -> Recipe:
    checkpoint = sources["a"]
    flow = flow_of(checkpoint.config["model_type"], checkpoint.layout, {"a": 4, "b": 4})
    assert flow is not None
    return folded(flow, path, [scale] * len(path))


def _state(model: Any) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma2", "qwen2", "gpt_neox", "gpt2", "mixtral"])
def test_whatever_came_before_a_stack_is_what_its_export_loads_as(
    tiny: Tiny, tmp_path: Path, family: str, dtype: str
) -> None:
    from transformers import AutoModelForCausalLM

    sources = _sources(tiny, family, dtype=dtype)
    live = LiveModel.open(sources["a"], device=CPU)
    whole = Recipe.model_validate({"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}],
                                   "parameters": {"weight": 0.5}})  # fmt: skip
    recipes = [_recipe(sources, path, scale) for path, scale in zip(PATHS, (1.25, 0.75, 1.0, 1.5), strict=True)]
    tokens = torch.tensor([[1, 7, 9, 20, 33, 12, 4, 8]])
    slices = [{"sources": [{"model": name, "layer_range": [start, start + 2]} for name in "ab"]} for start in (0, 1, 2)]
    mixed = Recipe.model_validate({"merge_method": "linear", "slices": slices, "parameters": {"weight": 0.5}})
    for number, recipe in enumerate([*recipes, mixed, recipes[0], whole, *recipes[:2]]):
        live.merge(recipe, sources, 0)
        export_checkpoint(recipe, sources, tmp_path / str(number), mask_seed=0)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / str(number))
        ours, theirs = _state(live.model), _state(loaded)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
        assert live.model.config.num_hidden_layers == loaded.config.num_hidden_layers
        assert torch.equal(live.model(tokens).logits, loaded(tokens).logits)


def test_layers_are_built_once_and_only_what_is_scaled_is_written(tiny: Tiny) -> None:
    sources = _sources(tiny, "llama")
    live = LiveModel.open(sources["a"], device=CPU)
    live.merge(_recipe(sources, PATHS[1], 1.25), sources, 0)
    before = list(live.model.model.layers)
    live.merge(_recipe(sources, PATHS[3], 0.75), sources, 0)
    after = list(live.model.model.layers)
    assert all(ours is theirs for ours, theirs in zip(after, before, strict=False))
    scaled = {"self_attn.o_proj.weight", "mlp.down_proj.weight"}
    for (model, number), layer in zip(PATHS[3], after, strict=True):
        for name, parameter in layer.named_parameters():
            mapped = sources[model].tensor(f"model.layers.{number}.{name}")
            assert (parameter.data_ptr() == mapped.data_ptr()) == (name not in scaled)


def test_a_stack_leaves_its_sources_as_they_are(tiny: Tiny) -> None:
    sources = _sources(tiny, "llama")
    before = {(name, tensor): c.tensor(tensor).clone() for name, c in sources.items() for tensor in c.names}
    live = LiveModel.open(sources["a"], device=CPU)
    for path in PATHS:
        live.merge(_recipe(sources, path, 0.5), sources, 0)
        live.merge(Recipe.model_validate({"merge_method": "passthrough", "models": [{"model": "b"}]}), sources, 0)
    assert all(torch.equal(sources[name].tensor(tensor), kept) for (name, tensor), kept in before.items())
