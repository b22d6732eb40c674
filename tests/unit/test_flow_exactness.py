"""Layers of several models in any order, scales of hops folded into weights, against explicitly scaled forward passes.

Where eps of the norms is 0, both compute the same; eps is the only difference in structure, and what it amounts to is
recorded with each test.
"""

import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge_contract.recipe import Recipe
from evomerge_worker.families import LiveModel
from evomerge_worker.families.loading import load_state
from evomerge_worker.merge import Merger, export_checkpoint, plan_merge
from evomerge_worker.merge.layers import read_as, result_config
from evomerge_worker.prepare.flow import FAMILIES, flow_of
from evomerge_worker.shards import Checkpoint
from flow_recipes import folded
from tiny_models import Tiny

CPU = torch.device("cpu")
WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": []}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with tied head": ("llama-tied", {}),
    "mistral": ("mistral", {"sliding_window": 4}),
    "mixtral": ("mixtral", {"num_local_experts": 3, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "tie_word_embeddings": True, **WINDOWS}),
    "qwen3": ("qwen3", {}),
    "qwen3 with experts": ("llama", {"model_type": "qwen3_moe", "num_experts": 3, **EXPERTS}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 8, **WINDOWS}),
    "gemma3": ("gemma2", {"model_type": "gemma3_text", "query_pre_attn_scalar": 8, **WINDOWS}),
    "phi": ("phi3", {"model_type": "phi"}),
    "phi3": ("phi3", {}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox one after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "granite": ("llama", {"model_type": "granite", "residual_multiplier": 0.3}),
    "olmo2": ("llama", {"model_type": "olmo2", "attention_bias": True}),
    "smollm3": ("llama", {"model_type": "smollm3"}),
    "gpt2": ("gpt2", {}),
}
PATH = [("a", 0), ("a", 1), ("b", 1), ("b", 0), ("a", 2), ("b", 2), ("b", 2), ("a", 1), ("b", 3), ("a", 3)]
"""Layers left out, repeated and exchanged; the donor's own first and last layer at the ends."""
EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")


@pytest.fixture(params=MODELS)
def sources(request: pytest.FixtureRequest, tiny: Tiny) -> dict[str, Checkpoint]:
    """Two models of a family with weights and biases that differ in every tensor."""
    family, config = MODELS[request.param]
    folders = {
        name: tiny(family, seed=seed, dtype="float32", noise=0.1, **config) for name, seed in (("a", 1), ("b", 2))
    }
    return {name: Checkpoint.open(folder, name) for name, folder in folders.items()}


def _scales() -> list[float]:
    generator = torch.Generator().manual_seed(5)
    return [float(value) for value in 0.5 + torch.rand(len(PATH), generator=generator, dtype=torch.float64)]


def _recipe(sources: dict[str, Checkpoint], scales: list[float]) -> Recipe:
    checkpoint = sources["a"]
    flow = flow_of(checkpoint.config["model_type"], checkpoint.layout, {"a": 4, "b": 4})
    assert flow is not None
    return folded(flow, PATH, scales)


def _exact(recipe: Recipe, sources: Mapping[str, Checkpoint]) -> dict[str, Tensor]:
    """What a recipe of one model a tensor asks for, in float64."""
    state = {}
    for plan in plan_merge(recipe, sources):
        (source,) = plan.inputs
        tensor = sources[source.model].tensor(source.tensor)
        scale, origin = source.values.get("scale", 1.0), source.values.get("scale_origin", 0.0)
        state[plan.name] = (tensor.double() - origin) * scale + origin if tensor.is_floating_point() else tensor
    return state


def _model(recipe: Recipe, sources: dict[str, Checkpoint], state: dict[str, Tensor], dtype: torch.dtype) -> Any:
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    config = read_as(CONFIG_MAPPING[sources["a"].config["model_type"]], result_config(recipe, sources))
    if dtype == torch.float64:
        config._experts_implementation = "eager"  # the others take no float64
        for key in EPS:
            if hasattr(config, key):
                setattr(config, key, 1e-60)
    model = load_state(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], state, config, dtype=dtype, device=CPU)
    if dtype == torch.float64:
        _without_float32(model)
    return model


def _without_float32(model: Any) -> None:
    """Norms that compute in float32, whatever their input is, compute in that of their input."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(_norm, module)


def _norm(self: Any, x: Tensor) -> Tensor:
    eps = getattr(self, "variance_epsilon", getattr(self, "eps", None))
    gain = 1 + self.weight if "Gemma" in type(self).__name__ else self.weight
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gain


def _layers(model: Any) -> Any:
    inner = model.base_model
    return inner.h if hasattr(inner, "h") else inner.layers


def _scaled(model: Any, scales: list[float]) -> Any:
    """The model whose layers have their inputs multiplied."""

    def multiplied(scale: float) -> Callable[..., Any]:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (args[0] * scale, *args[1:]), kwargs
            return args, kwargs | {"hidden_states": kwargs["hidden_states"] * scale}

        return hook

    for layer, scale in zip(_layers(model), scales, strict=True):
        layer.register_forward_pre_hook(multiplied(scale), with_kwargs=True)
    return model


def _logits(model: Any) -> Tensor:
    tokens = torch.randint(3, 60, (2, 24), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        logits: Tensor = model(tokens).logits
    return logits.double()


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def test_every_family_whose_scales_are_folded_is_compared_here() -> None:
    types = {config.get("model_type", name.removesuffix("-tied")) for name, config in MODELS.values()}
    assert types == FAMILIES.keys()


def test_a_folded_path_computes_what_a_scaled_one_does(
    sources: dict[str, Checkpoint], record_property: Callable[[str, object], None]
) -> None:
    scales = _scales()
    recipe, plain = _recipe(sources, scales), _recipe(sources, [1.0] * len(PATH))
    exact = {}
    for dtype in (torch.float64, torch.float32):
        ours = _logits(_model(recipe, sources, _exact(recipe, sources), dtype))
        theirs = _logits(_scaled(_model(plain, sources, _exact(plain, sources), dtype), scales))
        exact[dtype] = _apart(ours, theirs)
        unscaled = _logits(_model(plain, sources, _exact(plain, sources), dtype))
        assert _apart(unscaled, theirs) > 1e-2  # scales matter
    record_property("error with the family's own eps in float32, of the largest logit", exact[torch.float32])
    print(
        f"float64 without eps {exact[torch.float64]:.1e}, float32 with the family's own eps {exact[torch.float32]:.1e}"
    )
    assert exact[torch.float64] < 1e-12


def test_a_folded_path_is_written_in_float32_and_rounded_once(sources: dict[str, Checkpoint]) -> None:
    recipe = _recipe(sources, _scales())
    exact = _exact(recipe, sources)
    for name, tensor in Merger(sources, 0).merged(plan_merge(recipe, sources)):
        torch.testing.assert_close(tensor.double(), exact[name].double(), rtol=3e-7, atol=2e-7)


def test_a_folded_path_loads_as_it_is_and_has_a_cache_of_its_own_for_each_layer(
    sources: dict[str, Checkpoint], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    recipe = _recipe(sources, _scales())
    export_checkpoint(recipe, sources, tmp_path / "out", mask_seed=0)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    live = LiveModel.open(sources["a"], device=CPU)
    live.merge(recipe, sources, 0)
    texts = [_continued(model, use_cache=cached) for model in (loaded.eval(), live.model) for cached in (True, False)]
    assert texts[1:] == texts[:1] * 3


def _continued(model: Any, *, use_cache: bool) -> list[int]:
    prompt = torch.tensor([[1, 7, 9, 20, 33]])
    made = model.generate(prompt, max_new_tokens=12, do_sample=False, use_cache=use_cache, eos_token_id=None)
    return list(made[0].tolist())
