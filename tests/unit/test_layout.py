"""Telling a model's layers from its tensors' names."""

import pytest

from evomerge_worker.shards import Checkpoint, layout_of
from tiny_models import Tiny


def _shapes(*names: str) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(names, (2, 2))


@pytest.mark.parametrize(
    ("family", "prefix", "before", "after"),
    [
        ("llama", "model.layers.", {"model.embed_tokens.weight"}, {"model.norm.weight", "lm_head.weight"}),
        ("llama-tied", "model.layers.", {"model.embed_tokens.weight"}, {"model.norm.weight"}),
        (
            "gpt_neox",
            "gpt_neox.layers.",
            {"gpt_neox.embed_in.weight"},
            {"gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias", "embed_out.weight"},
        ),
        (
            "gpt2",
            "transformer.h.",
            {"transformer.wte.weight", "transformer.wpe.weight"},
            {"transformer.ln_f.weight", "transformer.ln_f.bias"},
        ),
        ("mixtral", "model.layers.", {"model.embed_tokens.weight"}, {"model.norm.weight", "lm_head.weight"}),
    ],
)
def test_the_layers_of_a_family_are_found(
    tiny: Tiny, family: str, prefix: str, before: set[str], after: set[str]
) -> None:
    layout = Checkpoint.open(tiny(family), family).layout
    assert layout.layer_prefix == prefix
    assert layout.layers == 4
    assert (set(layout.before), set(layout.after)) == (before, after)


def test_the_embeddings_norm_of_bert_stands_before_its_layers_and_the_head_after(tiny: Tiny) -> None:
    layout = Checkpoint.open(tiny("bert"), "bert").layout
    assert layout.layer_prefix == "bert.encoder.layer."
    assert all(name.startswith("bert.embeddings.") for name in layout.before)
    assert "bert.embeddings.LayerNorm.weight" in layout.before
    assert layout.after
    assert all(name.startswith("cls.") for name in layout.after)


def test_experts_inside_a_layer_are_not_taken_for_layers(tiny: Tiny) -> None:
    """Mixtral has more tensors in experts than anywhere else."""
    layout = Checkpoint.open(tiny("mixtral"), "mixtral").layout
    assert "block_sparse_moe.experts.1.w2.weight" in layout.layer_tensors


def test_layers_may_differ(tiny: Tiny) -> None:
    """The first layer of DeepSeek V3 is dense, the others have experts: the layout holds what any of them has."""
    checkpoint = Checkpoint.open(tiny("deepseek_v3"), "deepseek")
    assert {"mlp.gate_proj.weight", "mlp.experts.0.gate_proj.weight"} <= set(checkpoint.layout.layer_tensors)
    assert "mlp.gate_proj.weight" in checkpoint.layer_tensors[0]
    assert "mlp.gate_proj.weight" not in checkpoint.layer_tensors[1]


def test_every_tensor_has_exactly_one_place(tiny: Tiny) -> None:
    for family in ("llama", "gpt_neox", "deepseek_v3", "bert"):
        checkpoint = Checkpoint.open(tiny(family), family)
        layout = checkpoint.layout
        in_layers = [
            f"{layout.layer_prefix}{i}.{t}" for i, tensors in enumerate(checkpoint.layer_tensors) for t in tensors
        ]
        assert sorted([*layout.before, *in_layers, *layout.after]) == checkpoint.names


def test_a_vision_tower_with_more_tensors_loses_to_the_larger_language_model() -> None:
    tower = {f"vision_tower.layers.{i}.{t}": (2, 2) for i in range(9) for t in "abcdef"}
    language = {f"language_model.model.layers.{i}.{t}": (64, 64) for i in range(4) for t in "ab"}
    ends = _shapes("language_model.model.embed_tokens.weight", "language_model.lm_head.weight", "projector.weight")
    layout = layout_of(tower | language | ends)
    assert layout.layer_prefix == "language_model.model.layers."
    assert set(tower) < set(layout.before)
    assert layout.after == ["language_model.lm_head.weight", "projector.weight"]


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="no tensor belongs to a numbered layer"):
        layout_of(_shapes("embed.weight", "head.weight"))


def test_a_gap_between_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no tensor of layer model\.layers\.1, though there are later layers"):
        layout_of(_shapes("model.layers.0.w", "model.layers.2.w"))
