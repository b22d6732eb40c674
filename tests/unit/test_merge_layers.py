"""Results with other layers than any source has: they load as they are, and compute what the live model does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge_contract.recipe import Recipe
from evomerge_worker.errors import InputError
from evomerge_worker.families import LiveModel
from evomerge_worker.merge import export_checkpoint, plan_merge
from evomerge_worker.merge.layers import layer_kinds, result_config
from evomerge_worker.shards import Checkpoint
from tiny_models import Tiny, write_tensors

CPU = torch.device("cpu")
FAMILIES = ("llama", "llama-tied", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gpt_neox", "gpt2", "phi3",
            "mixtral", "deepseek_v3")  # fmt: skip


def _slice(**ranges: tuple[int, int]) -> dict[str, Any]:
    return {"sources": [{"model": name, "layer_range": list(layers)} for name, layers in ranges.items()]}


def _recipe(*slices: dict[str, Any], **keys: Any) -> Recipe:
    return Recipe.model_validate({"merge_method": "linear", "slices": slices, "parameters": {"weight": 1}, **keys})


DEEPER = _recipe(_slice(a=(0, 3)), _slice(a=(1, 2), b=(3, 4)), _slice(a=(2, 3), b=(2, 3)), _slice(b=(1, 2)))
"""Six layers of two models with four each, two of them merged, one from layers of different numbers."""


def _sources(tiny: Tiny, family: str, **options: Any) -> dict[str, Checkpoint]:
    return {name: Checkpoint.open(tiny(family, seed=seed, **options), name) for name, seed in (("a", 1), ("b", 2))}


def _loaded(recipe: Recipe, sources: dict[str, Checkpoint], folder: Path) -> Any:
    """The exported result as transformers loads it, which must find every tensor and no other."""
    from transformers import AutoModelForCausalLM

    export_checkpoint(recipe, sources, folder, mask_seed=3)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


def _state(model: Any) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _continued(model: Any, *, use_cache: bool) -> list[int]:
    prompt = torch.tensor([[1, 7, 9, 20, 33]])
    made = model.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=use_cache, eos_token_id=None)
    return list(made[0].tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_another_depth_loads_and_computes_as_the_live_model_does(tiny: Tiny, tmp_path: Path, family: str) -> None:
    """Cached and uncached: layers that share a number would share a cache."""
    sources = _sources(tiny, family, dtype="float32")
    live = LiveModel.open(sources["a"], device=CPU)
    live.merge(DEEPER, sources, 3)
    loaded = _loaded(DEEPER, sources, tmp_path / "out")
    assert loaded.config.num_hidden_layers == 6
    ours, theirs = _state(live.model), _state(loaded)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    texts = [_continued(model, use_cache=cached) for model in (live.model, loaded) for cached in (True, False)]
    assert texts[1:] == texts[:1] * 3


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("smollm3", {}),  # no_rope_layers
        ("lfm2", {}),  # layers of different tensors, told by layer_types
        ("falcon_h1", {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}),  # a config with an infinity
        ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    ],
)
def test_other_families_move_their_layers_too(
    tiny: Tiny, tmp_path: Path, model_type: str, config: dict[str, Any]
) -> None:
    source = Checkpoint.open(tiny("llama", seed=1, model_type=model_type, **config), "a")
    recipe = _recipe(_slice(a=(0, 3)), _slice(a=(1, 4)), _slice(a=(2, 3)))
    loaded = _loaded(recipe, {"a": source}, tmp_path / "out")
    live = LiveModel.open(source, device=CPU)
    live.merge(recipe, {"a": source}, 3)
    assert [_continued(live.model, use_cache=True)] == [_continued(loaded, use_cache=True)]


def test_layers_are_taken_from_where_the_slices_say(tiny: Tiny, tmp_path: Path) -> None:
    sources = _sources(tiny, "llama")
    export_checkpoint(DEEPER, sources, tmp_path / "out", mask_seed=3)
    out, name = Checkpoint.open(tmp_path / "out", "out"), "self_attn.q_proj.weight"

    def layer(model: str, number: int) -> torch.Tensor:
        return sources[model].tensor(f"model.layers.{number}.{name}").float()

    expected = [
        *(layer("a", i) for i in range(3)),
        (layer("a", 1) + layer("b", 3)) / 2,
        (layer("a", 2) + layer("b", 2)) / 2,
        layer("b", 1),
    ]
    for i, tensor in enumerate(expected):
        assert torch.equal(out.tensor(f"model.layers.{i}.{name}"), tensor.bfloat16())
    assert torch.equal(out.tensor("model.embed_tokens.weight"), sources["a"].tensor("model.embed_tokens.weight"))
    assert torch.equal(out.tensor("lm_head.weight"), sources["b"].tensor("lm_head.weight"))


def test_a_live_model_goes_from_one_depth_to_another_and_back(tiny: Tiny, tmp_path: Path) -> None:
    sources = _sources(tiny, "llama")
    shallow = _recipe(_slice(b=(1, 3)), base_model="a")
    ordinary = _recipe(_slice(a=(0, 4), b=(0, 4)))
    live = LiveModel.open(sources["a"], device=CPU)
    for i, recipe in enumerate((DEEPER, shallow, ordinary, DEEPER, ordinary)):
        live.merge(recipe, sources, 3)
        ours, theirs = _state(live.model), _state(_loaded(recipe, sources, tmp_path / f"out{i}"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_sources_may_have_different_depths(tiny: Tiny, tmp_path: Path) -> None:
    sources = {"a": Checkpoint.open(tiny("qwen2", seed=1), "a")}
    sources["deep"] = Checkpoint.open(tiny("qwen2", seed=2, num_hidden_layers=6), "deep")
    model = _loaded(_recipe(_slice(a=(0, 2), deep=(4, 6)), _slice(deep=(3, 6))), sources, tmp_path / "out")
    assert model.config.num_hidden_layers == 5
    assert len(model.config.layer_types) == 5


def test_what_the_config_says_of_a_layer_goes_where_the_layer_goes(tiny: Tiny, tmp_path: Path) -> None:
    """Gemma 2's layers take turns: those with a window keep it, wherever they stand."""
    sources = _sources(tiny, "gemma2")
    before = sources["a"].config["layer_types"]
    assert before == ["sliding_attention", "full_attention"] * 2
    model = _loaded(_recipe(_slice(a=(0, 1)), _slice(a=(0, 3)), _slice(b=(3, 4))), sources, tmp_path / "out")
    assert model.config.layer_types == [before[i] for i in (0, 0, 1, 2, 3)]


def test_a_config_that_leaves_the_kinds_to_its_class_is_completed(tiny: Tiny, tmp_path: Path) -> None:
    """As Gemma 2's were written before transformers listed them."""
    folder = tiny("gemma2", seed=1)
    old = Checkpoint.open(folder, "a")
    del old.config["layer_types"]
    assert [kind["layer_types"][:4] for kind in layer_kinds(old)] == ["slid", "full"] * 2
    export_checkpoint(_recipe(_slice(a=(1, 4))), {"a": old}, tmp_path / "out", mask_seed=0)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["layer_types"] == ["full_attention", "sliding_attention", "full_attention"]
    assert "layer_types" not in old.config


def test_layers_of_different_kinds_are_not_merged(tiny: Tiny) -> None:
    with pytest.raises(InputError) as caught:
        plan_merge(_recipe(_slice(a=(0, 2), b=(1, 3))), _sources(tiny, "gemma2"))
    assert [(p.path, p.message) for p in caught.value.problems] == [
        (
            "models.b",
            f"layer {i + 1} is {theirs}_attention (layer_types), but layer {i} of a is {ours}_attention (layer_types); "
            "choose a layer_range that brings like to like",
        )
        for i, (ours, theirs) in enumerate((("sliding", "full"), ("full", "sliding")))
    ]


def test_models_must_fit_together_also_in_slices_of_their_own(tiny: Tiny) -> None:
    """In width, and in what their configs say of layers."""
    sources = {"a": Checkpoint.open(tiny("llama"), "a")}
    sources["wide"] = Checkpoint.open(tiny("llama", intermediate_size=128, num_hidden_layers=6), "wide")
    with pytest.raises(InputError) as caught:
        plan_merge(_recipe(_slice(a=(0, 4)), _slice(wide=(4, 6))), sources)
    assert "tensor model.layers.4.mlp.down_proj.weight has shape [32, 128], but [32, 64] in a" in str(caught.value)
    sources["other"] = Checkpoint.open(tiny("gemma2"), "other")
    with pytest.raises(InputError) as caught:
        plan_merge(_recipe(_slice(a=(0, 4)), _slice(other=(2, 4))), sources)
    assert [(p.path, p.message) for p in caught.value.problems] == [
        (
            "models.other",
            "its config tells layers apart by layer_types, but that of a by nothing; leave one of them out",
        )
    ]


def test_dense_layers_stay_at_the_front(tiny: Tiny, tmp_path: Path) -> None:
    """DeepSeek's config counts them."""
    sources = _sources(tiny, "deepseek_v3")
    model = _loaded(_recipe(_slice(a=(0, 1)), _slice(b=(0, 3)), _slice(a=(1, 4))), sources, tmp_path / "out")
    assert (model.config.first_k_dense_replace, model.config.num_hidden_layers) == (2, 7)
    with pytest.raises(InputError) as caught:
        export_checkpoint(_recipe(_slice(a=(1, 4)), _slice(b=(0, 2))), sources, tmp_path / "no", mask_seed=0)
    assert [(p.path, p.message) for p in caught.value.problems] == [
        (
            "models.a",
            "layer 3 of the result would be a dense one behind layers with experts, but config.json can only say how "
            "many stand at the front (first_k_dense_replace); put the slices with dense layers first",
        )
    ]
    with pytest.raises(InputError, match=r"models\.b: layer 1 is one with experts, but layer 0 of a is dense"):
        plan_merge(_recipe(_slice(a=(0, 1), b=(1, 2))), sources)


def test_a_nested_text_config_is_the_one_that_changes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"model.language_model.layers.{i}.mlp.weight": torch.randn(4, 4, generator=generator) for i in range(3)
    } | {"model.language_model.norm.weight": torch.ones(4)}
    text = {"model_type": "qwen2", "num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    config = {"model_type": "qwen2_5_vl", "text_config": text, "vision_config": {"depth": 2, "hidden_size": 8}}
    source = Checkpoint.open(write_tensors(tmp_path / "a", tensors, config=config), "a")
    export_checkpoint(_recipe(_slice(a=(0, 2)), _slice(a=(0, 3))), {"a": source}, tmp_path / "out", mask_seed=0)
    out = Checkpoint.open(tmp_path / "out", "out")
    assert out.layout.layers == 5
    assert out.config["text_config"] == text | {"num_hidden_layers": 5, "layer_types": ["full_attention"] * 5}
    assert out.config["vision_config"] == config["vision_config"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 5}, "its tensors make 3 layers, but config.json has num_hidden_layers 5: slices that"),
        (
            {"model_type": "qwen2_moe", "mlp_only_layers": [1]},
            "its layers cannot be moved, because config.json sets mlp_only_layers; merge it whole",
        ),
        ({"model_type": "own"}, "layers 0 and 1 have different tensors, and config.json does not say so layer by"),
        ({"sliding_window": "far"}, "transformers does not accept the config: "),
        ({"text_config": {}}, "config.json has a text_config that is no configuration: {}"),
        ({"text_config": "x"}, 'config.json has a text_config that is no configuration: "x"'),
        ({"text_config": 3}, "config.json has a text_config that is no configuration: 3"),
        ({"text_config": [1]}, "config.json has a text_config that is no configuration: [1]"),
    ],
)
def test_layers_that_cannot_be_moved_say_why(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    tensors = {f"model.layers.{i}.mlp.weight": torch.zeros(4, 4) for i in range(3)}
    if config.get("model_type") == "own":
        tensors["model.layers.1.mlp.bias"] = torch.zeros(4)
    config = {"model_type": "mistral", "num_hidden_layers": 3} | config
    source = Checkpoint.open(write_tensors(tmp_path / "a", tensors, config=config), "a")
    with pytest.raises(InputError) as caught:
        plan_merge(_recipe(_slice(a=(1, 3))), {"a": source})
    assert [p.path for p in caught.value.problems] == ["models.a"]
    assert caught.value.problems[0].message.startswith(message)
    plan_merge(_recipe(_slice(a=(0, 3))), {"a": source})


@pytest.mark.parametrize("config", [{"model_type": []}, {"model_type": "mistral", "attribute_map": []}])
def test_values_of_another_kind_do_not_keep_layers_from_moving(tmp_path: Path, config: dict[str, Any]) -> None:
    tensors = {f"model.layers.{i}.mlp.weight": torch.zeros(4, 4) for i in range(3)}
    config = {"num_hidden_layers": 3} | config
    source = Checkpoint.open(write_tensors(tmp_path / "a", tensors, config=config), "a")
    assert result_config(_recipe(_slice(a=(1, 3))), {"a": source})["num_hidden_layers"] == 2


def test_a_base_of_a_slice_takes_the_place_of_the_recipes(tiny: Tiny) -> None:
    sources = _sources(tiny, "llama") | {"c": Checkpoint.open(tiny("llama", seed=3), "c")}
    own = _slice(a=(0, 2), b=(0, 2)) | {"base_model": "b"}
    recipe = _recipe(own, _slice(a=(2, 4), c=(2, 4)), merge_method="ties", base_model="c")
    plans = {plan.name: plan for plan in plan_merge(recipe, sources)}
    taken = {
        name: (plan.base and plan.base.model, [i.model for i in plan.inputs])
        for name, plan in plans.items()
        if "q_proj" in name or "layers" not in name
    }
    assert taken["model.embed_tokens.weight"] == taken["model.layers.1.self_attn.q_proj.weight"] == ("b", ["a"])
    assert taken["lm_head.weight"] == taken["model.layers.2.self_attn.q_proj.weight"] == ("c", ["a"])


def test_slices_that_all_have_a_base_need_no_other(tiny: Tiny) -> None:
    sources = _sources(tiny, "llama")
    whole = _slice(a=(0, 4), b=(0, 4)) | {"base_model": "b"}
    assert {p.base and p.base.model for p in plan_merge(_recipe(whole, merge_method="ties"), sources)} == {"b"}
    with pytest.raises(InputError, match=r"recipe\.slices\[0\]\.base_model: c is not among the sources"):
        plan_merge(_recipe(whole | {"base_model": "c"}, merge_method="ties"), sources)
