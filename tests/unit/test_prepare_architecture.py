"""Each model is held against its own config.json by the prepare task: what it lacks, and what nothing has a use for."""

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge_worker.prepare.architecture import unfit_for_config
from evomerge_worker.prepare.config import read_config
from evomerge_worker.shards import Checkpoint
from faults import Change, Tensors, changed, cut_head, drop_up
from merge_corpus import CORPUS
from prepare_tasks import Tiny, changed_config, changed_weights, mistakes_of
from tiny_models import FAMILIES

AGAIN = "fetch the model again, config.json and weights from one place"
UP = "model.layers.0.mlp.up_proj.weight"
EXTRA = "model.layers.0.mlp.extra_proj.weight"


def rename_up(tensors: Tensors) -> None:
    tensors[EXTRA] = tensors.pop(UP)


def add_extra(tensors: Tensors) -> None:
    tensors[EXTRA] = torch.zeros(3, 3)


def drop_an_expert(tensors: Tensors) -> None:
    del tensors["model.layers.0.block_sparse_moe.experts.1.w1.weight"]


def lacks(name: str, architecture: str = "LlamaForCausalLM", more: str = "") -> str:
    return f"lacks tensor {name}, which {architecture} needs{more}; {AGAIN}"


def has(name: str, architecture: str = "LlamaForCausalLM", more: str = "") -> str:
    told = f"has tensor {name}, which {architecture} has no place for{more}"
    return f"{told}; {AGAIN}, or take what is not needed out of its files"


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (cut_head, [f"tensor lm_head.weight has shape [50, 32], but config.json asks for [96, 32]; {AGAIN}"]),
        (drop_up, [lacks(UP, more=" (and 3 more tensors like it)")]),
        (rename_up, [lacks(UP), has(EXTRA)]),
        (add_extra, [has(EXTRA)]),
    ],
)
def test_tensors_that_all_models_have_alike_are_held_against_the_config(
    change: Change, messages: list[str], tiny: Tiny, tmp_path: Path
) -> None:
    folders = {name: changed_weights(tiny(seed=i), tmp_path / name, change) for i, name in enumerate("ab")}
    assert mistakes_of(folders, tmp_path) == [(f"models.{name}", told) for name in "ab" for told in messages]


def test_an_expert_that_all_models_lack_is_told(tiny: Tiny, tmp_path: Path) -> None:
    """On loading, transformers makes one tensor of all experts."""
    folders = {n: changed_weights(tiny("mixtral", seed=i), tmp_path / n, drop_an_expert) for i, n in enumerate("ab")}
    told = f"the tensors that make up model.layers.0.mlp.experts.gate_up_proj do not go together; {AGAIN}"
    assert mistakes_of(folders, tmp_path) == [("models.a", told), ("models.b", told)]


@pytest.mark.parametrize("said", [2, 6])
def test_a_config_that_counts_other_layers_than_there_are_is_told(said: int, tiny: Tiny, tmp_path: Path) -> None:
    """Of every model, the base included: each is evaluated by itself, too."""
    folders = {
        "base": changed_config(tiny(), tmp_path / "base", num_hidden_layers=said),
        "a": tiny(),
        "b": changed_config(tiny(seed=1), tmp_path / "b", num_hidden_layers=said),
    }
    told = f"its tensors make 4 layers, but config.json says {said} (num_hidden_layers); {AGAIN}"
    assert mistakes_of(folders, tmp_path) == [("base", told), ("models.b", told)]


@pytest.mark.parametrize(
    ("family", "model_type", "messages"),
    [
        ("qwen2", "llama", [has("model.layers.0.self_attn.k_proj.bias", more=" (and 11 more tensors like it)")]),
        (
            "llama",
            "bert",
            [
                lacks("bert.embeddings.LayerNorm.bias", "BertLMHeadModel", " (and 75 more tensors like it)"),
                has("lm_head.weight", "BertLMHeadModel", " (and 38 more tensors like it)"),
            ],
        ),
        ("llama", "t5", ["transformers has no causal language model of type t5; only those can be evaluated"]),
    ],
)
def test_weights_of_another_architecture_are_told(
    family: str, model_type: str, messages: list[str], tiny: Tiny, tmp_path: Path
) -> None:
    folders = {n: changed_config(tiny(family, seed=i), tmp_path / n, model_type=model_type) for i, n in enumerate("ab")}
    assert mistakes_of(folders, tmp_path) == [(f"models.{name}", told) for name in "ab" for told in messages]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"hidden_act": "foo"}, "KeyError: 'foo'"),
        ({"rope_parameters": {"rope_type": "foo", "rope_theta": 1e4}}, "KeyError: 'foo'"),
        ({"pad_token_id": 500}, "AssertionError: Padding_idx must be within num_embeddings"),
        ({"attn_implementation": "nope"}, 'ValueError: Specified `attn_implementation="nope"` is not supported'),
    ],
)
def test_a_config_that_no_model_can_be_made_of_is_told(
    config: dict[str, Any], reason: str, tiny: Tiny, tmp_path: Path
) -> None:
    ((path, message),) = mistakes_of({"a": changed_config(tiny(), tmp_path / "a", **config)}, tmp_path)
    assert path == "models.a"
    assert message.startswith(f"transformers cannot make a model of type llama from config.json ({reason}")
    assert message.endswith("; mend that file")


def test_a_text_config_that_is_none_is_told(tiny: Tiny, tmp_path: Path) -> None:
    model = changed_config(tiny(), tmp_path / "a", text_config=5)
    told = [("models.a", "config.json has a text_config that is no configuration: 5")]
    assert mistakes_of({"a": model}, tmp_path) == told


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_models_of_every_family_fit_their_config(family: str, tiny: Tiny, tmp_path: Path) -> None:
    assert mistakes_of({"a": tiny(family), "b": tiny(family, seed=1)}, tmp_path) == []


@pytest.mark.parametrize("evaluated", [True, False])
@pytest.mark.parametrize("family", sorted({entry.family for entry in CORPUS.values()}))
def test_so_do_models_with_buffers_and_fused_experts(family: str, evaluated: bool, tiny: Tiny) -> None:
    entry = next(entry for entry in CORPUS.values() if entry.family == family)
    checkpoint = next(iter(entry.checkpoints(tiny).values()))
    config = read_config(checkpoint.folder, "a", code=False)
    assert list(unfit_for_config(checkpoint, config, evaluated=evaluated)) == []


def test_buffers_of_older_versions_are_no_mistake(tiny: Tiny, tmp_path: Path) -> None:
    def add_buffers(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["model.embed_tokens.position_ids"] = torch.arange(64)[None]
        tensors["model.layers.0.attn.masked_bias"] = torch.tensor(-1e9)

    folders = {name: changed_weights(tiny(seed=i), tmp_path / name, add_buffers) for i, name in enumerate("ab")}
    assert mistakes_of(folders, tmp_path) == []


def test_a_layer_that_the_class_passes_over_is_no_mistake(tiny: Tiny, tmp_path: Path) -> None:
    """DeepSeek's layer for predicting more than one token stands behind all others."""

    def add_layer(tensors: Tensors) -> None:
        last = {name: tensor for name, tensor in tensors.items() if ".layers.60." in name}
        tensors |= {name.replace(".60.", ".61."): tensor.clone() for name, tensor in last.items()}

    deep = tiny("deepseek_v3", num_hidden_layers=61)
    assert mistakes_of({"a": changed(deep, tmp_path / "a", add_layer)}, tmp_path) == []


def test_a_head_that_its_config_ties_may_be_held_or_not(tiny: Tiny, tmp_path: Path) -> None:
    def hold(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    def hold_alone(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    model = changed_weights(tiny("llama-tied"), tmp_path / "b", hold)
    assert mistakes_of({"a": model, "b": tiny("llama-tied")}, tmp_path) == []
    assert mistakes_of({"a": tiny("llama-tied"), "b": model}, tmp_path) == []
    alone = changed_weights(tiny("llama-tied"), tmp_path / "c", hold_alone)
    checkpoint = Checkpoint.open(alone, "c")
    assert list(unfit_for_config(checkpoint, read_config(alone, "c", code=False))) == []


def test_a_tied_model_without_embeddings_and_head_is_told(tiny: Tiny, tmp_path: Path) -> None:
    def drop(tensors: Tensors) -> None:
        del tensors["model.embed_tokens.weight"]

    checkpoint = Checkpoint.open(changed_weights(tiny("llama-tied"), tmp_path / "a", drop), "a")
    told = list(unfit_for_config(checkpoint, read_config(checkpoint.folder, "a", code=False)))
    assert told == [lacks("lm_head.weight", more=" (and 1 more tensor like it)")]


def test_without_evaluation_a_model_may_be_of_any_class_that_its_config_names(tiny: Tiny, tmp_path: Path) -> None:
    """A backbone has no head, and its tensors bear no prefix."""

    def backbone(tensors: Tensors) -> None:
        del tensors["lm_head.weight"]
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    folder = changed(tiny(), tmp_path / "a", backbone, architectures=["LlamaModel"])
    checkpoint, config = Checkpoint.open(folder, "a"), read_config(folder, "a", code=False)
    assert list(unfit_for_config(checkpoint, config, evaluated=False)) == []
    assert list(unfit_for_config(checkpoint, config)) == [lacks("lm_head.weight")]
