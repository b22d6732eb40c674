"""LoRA adapters: what they make of a model's tensors, and all that keeps one from fitting."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapters import PREFIX, write_adapter, write_files
from evomerge_worker.errors import InputError
from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.adapter import Adapter
from tiny_models import Tiny, write_tensors

QUERY, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"


def _applied(folder: Path, model: Checkpoint) -> dict[str, torch.Tensor]:
    adapter = Adapter.open(folder, "models.a")
    changes = adapter.changes(model, "models.a")
    return {name: adapter.applied(change, model.tensor(name)) for name, change in changes.items()}


def _expected(folder: Path, model: Checkpoint, module: str, scale: float, *, turned: bool = False) -> torch.Tensor:
    """W + scale B A in float64, rounded once."""
    tensors = load_file(folder / "adapter_model.safetensors")
    a, b = (tensors[f"{PREFIX}{module}.lora_{part}.weight"].double() for part in "AB")
    weight = model.tensor(f"{module}.weight")
    return (weight.double() + scale * (b @ a).T if turned else weight.double() + scale * (b @ a)).to(weight.dtype)


def _model(tiny: Tiny, family: str = "llama", **options: Any) -> Checkpoint:
    return Checkpoint.open(tiny(family, **options), "a")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_pair_is_added_and_rounded_once(tiny: Tiny, tmp_path: Path, dtype: str) -> None:
    model = _model(tiny, dtype=dtype)
    found = _applied(write_adapter(tmp_path / "x", model), model)
    assert sorted(found) == [f"{QUERY}.weight", f"{DOWN}.weight"]
    for module in (QUERY, DOWN):
        assert torch.equal(found[f"{module}.weight"], _expected(tmp_path / "x", model, module, 2.0))
        assert not torch.equal(found[f"{module}.weight"], model.tensor(f"{module}.weight"))


def test_ranks_and_alphas_may_be_given_module_by_module(tiny: Tiny, tmp_path: Path) -> None:
    """A pattern is the end of a module's name, whole parts only; with use_rslora the root of the rank divides."""
    model = _model(tiny)
    patterns = {"rank_pattern": {"proj": 9, "down_proj": 4, "mlp.down_proj": 9}, "alpha_pattern": {r"0\..*q_proj": 3}}
    write_adapter(tmp_path / "x", model, [DOWN], r=16, lora_alpha=5, **patterns)
    found = _applied(tmp_path / "x", model)
    assert torch.equal(found[f"{DOWN}.weight"], _expected(tmp_path / "x", model, DOWN, 5 / 4))
    write_adapter(tmp_path / "y", model, [QUERY, DOWN], lora_alpha=5, use_rslora=True, **patterns)
    found = _applied(tmp_path / "y", model)
    assert torch.equal(found[f"{QUERY}.weight"], _expected(tmp_path / "y", model, QUERY, 3 / math.sqrt(4)))
    assert torch.equal(found[f"{DOWN}.weight"], _expected(tmp_path / "y", model, DOWN, 5 / math.sqrt(4)))


def test_gpt2_has_its_weights_turned_around(tiny: Tiny, tmp_path: Path) -> None:
    """Also square ones, of which the shape does not tell."""
    model = _model(tiny, "gpt2")
    modules = ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_proj"]
    write_adapter(tmp_path / "x", model, modules, turned=True, fan_in_fan_out=True)
    found = _applied(tmp_path / "x", model)
    for module in modules:
        assert torch.equal(found[f"{module}.weight"], _expected(tmp_path / "x", model, module, 2.0, turned=True))


def test_tensors_that_are_saved_whole_take_the_places_of_the_models(tiny: Tiny, tmp_path: Path) -> None:
    model = _model(tiny, "qwen2")
    whole = {
        f"{PREFIX}model.norm.weight": torch.rand(32),
        f"{PREFIX}model.layers.1.self_attn.q_proj.bias": torch.rand(32),
        f"{PREFIX}lm_head.modules_to_save.weight": torch.rand(96, 32),
    }
    write_adapter(tmp_path / "x", model, extra=whole, bias="all", modules_to_save=["norm", "lm_head"])
    found = _applied(tmp_path / "x", model)
    for name, tensor in whole.items():
        changed = found[name.removeprefix(PREFIX).replace(".modules_to_save", "")]
        assert torch.equal(changed, tensor.bfloat16())


def test_embeddings_have_pairs_of_their_own(tiny: Tiny, tmp_path: Path) -> None:
    """PEFT saves the embeddings as they were beside them, and that is where it sets out from."""
    model, name = _model(tiny), "model.embed_tokens"
    a, b, before = torch.rand(4, 96), torch.rand(32, 4), torch.rand(96, 32)
    pair = {f"{PREFIX}{name}.lora_embedding_A": a, f"{PREFIX}{name}.lora_embedding_B": b}
    write_adapter(tmp_path / "x", model, extra=pair)
    delta = 2 * (b.double() @ a.double()).T
    found = _applied(tmp_path / "x", model)[f"{name}.weight"]
    assert torch.equal(found, (model.tensor(f"{name}.weight").double() + delta).bfloat16())
    write_adapter(tmp_path / "y", model, extra=pair | {f"{PREFIX}{name}.base_layer.weight": before})
    assert torch.equal(_applied(tmp_path / "y", model)[f"{name}.weight"], (before.double() + delta).bfloat16())


def test_a_long_weight_is_worked_on_in_parts(tmp_path: Path) -> None:
    tensors = {"model.layers.0.mlp.weight": torch.rand(2500, 8), "model.norm.weight": torch.ones(8)}
    model = Checkpoint.open(write_tensors(tmp_path / "a", tensors), "a")
    write_adapter(tmp_path / "x", model, ["model.layers.0.mlp"])
    found = _applied(tmp_path / "x", model)["model.layers.0.mlp.weight"]
    assert torch.equal(found, _expected(tmp_path / "x", model, "model.layers.0.mlp", 2.0))


@pytest.mark.parametrize(
    ("on_disk", "named"),
    [
        ("h.0.attn.c_attn", "transformer.h.0.attn.c_attn"),
        ("language_model.model.layers.0.mlp.up", "model.language_model.layers.0.mlp.up"),
        ("model.layers.0.mlp.up", "model.language_model.layers.0.mlp.up"),
    ],
)
def test_names_on_disk_may_be_others_than_in_memory(tmp_path: Path, on_disk: str, named: str) -> None:
    model = Checkpoint.open(write_tensors(tmp_path / "a", {f"{on_disk}.weight": torch.rand(8, 4)}), "a")
    pair = {f"{PREFIX}{named}.lora_A.weight": torch.rand(2, 4), f"{PREFIX}{named}.lora_B.weight": torch.rand(8, 2)}
    write_files(tmp_path / "x", pair, {"r": 2})
    assert list(_applied(tmp_path / "x", model)) == [f"{on_disk}.weight"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, "the adapter is of the kind LOHA; only LoRA is merged here"),
        ({"peft_type": "IA3"}, "the adapter is of the kind IA3"),
        ({"use_dora": True}, "the adapter sets use_dora, which is not done here"),
        ({"trainable_token_indices": [3]}, "the adapter sets trainable_token_indices"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "the adapter sets layer_replication"),
        ({"target_parameters": ["experts.down_proj"]}, "the adapter sets target_parameters"),
        (
            {"init_lora_weights": "pissa"},
            "the adapter was begun with init_lora_weights pissa, which changes the model's",
        ),
    ],
)
def test_other_kinds_are_refused_in_words(tiny: Tiny, tmp_path: Path, config: dict[str, Any], message: str) -> None:
    write_adapter(tmp_path / "x", _model(tiny), **config)
    with pytest.raises(InputError) as caught:
        Adapter.open(tmp_path / "x", "models.a")
    ((path, words),) = [(p.path, p.message) for p in caught.value.problems]
    assert path == "models.a"
    assert words.startswith(message)
    assert words.endswith("; merge it into its model with PEFT, and name the result")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": None}, "r None, which is no whole number above 0"),
        ({"r": 0}, "r 0, which is no whole number above 0"),
        ({"r": 2.5}, "r 2.5, which is no whole number above 0"),
        ({"lora_alpha": "16"}, "lora_alpha '16', which is no finite number"),
        ({"lora_alpha": math.nan}, "lora_alpha nan, which is no finite number"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern ['q_proj'], which is no mapping"),
        ({"rank_pattern": {"q_proj": [1]}}, "rank_pattern[q_proj] [1], which is no whole number above 0"),
        ({"rank_pattern": {"q_proj": "four"}}, "rank_pattern[q_proj] 'four', which is no whole number above 0"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern[q_proj] None, which is no finite number"),
    ],
)
def test_values_that_make_no_sense_are_told_by_their_key(
    tiny: Tiny, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    write_adapter(tmp_path / "x", _model(tiny), **config)
    with pytest.raises(InputError) as caught:
        Adapter.open(tmp_path / "x", "models.a")
    told = [(p.path, p.message) for p in caught.value.problems]
    assert told == [("models.a", f"the adapter has {message}; mend its adapter_config.json, or fetch it again")]


def test_a_pair_made_for_weights_turned_around_does_not_fit_others(tiny: Tiny, tmp_path: Path) -> None:
    model, name = _model(tiny), "model.layers.0.mlp.up_proj"
    write_adapter(tmp_path / "x", model, [name], turned=True)
    with pytest.raises(
        InputError, match=r"make \[32, 64\], but model\.layers\.0\.mlp\.up_proj\.weight of the model is"
    ):
        _applied(tmp_path / "x", model)
    write_adapter(tmp_path / "y", model, [name], turned=True, fan_in_fan_out=True)
    assert torch.equal(
        _applied(tmp_path / "y", model)[f"{name}.weight"], _expected(tmp_path / "y", model, name, 2.0, turned=True)
    )


def test_all_that_does_not_fit_is_told_at_once(tiny: Tiny, tmp_path: Path) -> None:
    model = _model(tiny)
    other = {
        f"{PREFIX}model.layers.9.mlp.up_proj.lora_A.weight": torch.rand(4, 32),
        f"{PREFIX}model.layers.9.mlp.up_proj.lora_B.weight": torch.rand(64, 4),
        f"{PREFIX}model.layers.1.mlp.up_proj.lora_A.weight": torch.rand(4, 16),
        f"{PREFIX}model.layers.1.mlp.up_proj.lora_B.weight": torch.rand(64, 4),
        f"{PREFIX}model.layers.1.mlp.gate_proj.lora_A.weight": torch.rand(3, 32),
        f"{PREFIX}model.layers.1.mlp.gate_proj.lora_B.weight": torch.rand(64, 3),
        f"{PREFIX}model.layers.3.mlp.up_proj.lora_B.weight": torch.rand(64, 4),
        f"{PREFIX}model.layers.0.self_attn.q_proj.lora_magnitude_vector": torch.rand(32),
        f"{PREFIX}model.embed_tokens.weight": torch.rand(98, 32),
    }
    write_adapter(tmp_path / "x", model, extra=other, base_model_name_or_path="org/other")
    with pytest.raises(InputError) as caught:
        Adapter.open(tmp_path / "x", "models.a").changes(model, "models.a")
    start, end = f"the adapter does not fit: {PREFIX}model.", "; name the model that it was trained on (org/other)"
    told = [p.message.removeprefix(start).removesuffix(end) for p in caught.value.problems]
    assert told == [
        "embed_tokens.weight has shape [98, 32], but model.embed_tokens.weight of the model [96, 32]",
        "layers.0.self_attn.q_proj.lora_magnitude_vector is none of the tensors of a LoRA adapter that are known here",
        f"the adapter says rank 4 (r, rank_pattern), but {PREFIX}model.layers.1.mlp.gate_proj.lora_A.weight and its B "
        "are of rank 3 and 3; mend its adapter_config.json, or fetch it again",
        "layers.1.mlp.up_proj.lora_A.weight and its B make [64, 16], but model.layers.1.mlp.up_proj.weight of the "
        "model is [64, 32]",
        "layers.3.mlp.up_proj.lora_B.weight has no lora_A.weight beside it",
        "and 1 more of its tensors do not fit",
    ]
    assert {p.path for p in caught.value.problems} == {"models.a"}


def test_a_tied_head_follows_what_changes_it_and_the_embeddings_alike(tiny: Tiny, tmp_path: Path) -> None:
    """With ensure_weight_tying PEFT writes a head's pair beside that of the embeddings, turned around: it is one."""
    model, name = _model(tiny, "llama-tied"), "model.embed_tokens"
    a, b, before = torch.rand(4, 96), torch.rand(32, 4), model.tensor(f"{name}.weight").float()
    pairs = {
        f"{PREFIX}{name}.lora_embedding_A": a,
        f"{PREFIX}{name}.lora_embedding_B": b,
        f"{PREFIX}{name}.base_layer.weight": before,
        f"{PREFIX}lm_head.lora_A.weight": b.T.contiguous(),
        f"{PREFIX}lm_head.lora_B.weight": a.T.contiguous(),
        f"{PREFIX}lm_head.base_layer.weight": before.clone(),
    }
    found = _applied(write_adapter(tmp_path / "x", model, [], extra=pairs, ensure_weight_tying=True), model)
    expected = (before.double() + 2 * (b.double() @ a.double()).T).bfloat16()
    assert list(found) == [f"{name}.weight"]
    assert torch.equal(found[f"{name}.weight"], expected)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lm_head"], "changes lm_head.weight, which the model ties to model.embed_tokens.weight, in another way than"),
        (
            ["lm_head", "model.embed_tokens"],
            "changes lm_head.weight, which the model ties to model.embed_tokens.weight",
        ),
        (
            ["model.embed_tokens"],
            "saves model.embed_tokens.weight whole, and the head, which the model ties to them, has",
        ),
    ],
)
def test_what_would_untie_a_head_is_refused(tiny: Tiny, tmp_path: Path, names: list[str], message: str) -> None:
    """PEFT trains a copy of embeddings that it saves whole, which the head does not follow."""
    model = _model(tiny, "llama-tied")
    write_adapter(tmp_path / "x", model, extra={f"{PREFIX}{name}.weight": torch.rand(96, 32) for name in names})
    with pytest.raises(InputError) as caught:
        _applied(tmp_path / "x", model)
    (problem,) = caught.value.problems
    assert problem.message.startswith(f"the adapter {message}")
    assert problem.message.endswith(
        "merge it with PEFT, set tie_word_embeddings to false in the result's config.json, and name that"
    )


def test_a_pattern_that_is_none_is_told(tiny: Tiny, tmp_path: Path) -> None:
    write_adapter(tmp_path / "x", _model(tiny), alpha_pattern={"(": 2})
    with pytest.raises(InputError, match=r"has a pattern that is no regular expression .*; mend its adapter_config"):
        _applied(tmp_path / "x", _model(tiny))


def test_an_adapter_that_git_has_not_fetched_is_told(tiny: Tiny, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "x", _model(tiny))
    (folder / "adapter_model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is a Git LFS pointer, not the file: run git lfs"):
        Adapter.open(folder, "models.a")


def test_a_damaged_adapter_is_told(tiny: Tiny, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "x", _model(tiny))
    (folder / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"models\.a: the adapter cannot be read .*; fetch it again"):
        Adapter.open(folder, "models.a")
