"""The prepare task over models that do not fit together: each difference is told, and harmless ones are not."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge_contract.recipe import Recipe
from evomerge_worker.merge.tokens import difference
from evomerge_worker.shards import Checkpoint
from evomerge_worker.standalone import merge
from faults import Change, drop_up
from prepare_tasks import Tiny, changed_config, changed_weights, mistakes_of

WHOSE_CONFIG = "say whose config counts (in a manifest spec.configSource, in a recipe config_source), or "


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05, but 1e-06 in a"),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu", but "silu" in a'),
        ({"num_key_value_heads": 1}, "num_key_value_heads is 1, but 2 in a"),
        ({"num_attention_heads": 8}, "num_attention_heads is 8, but 4 in a"),
        ({"head_dim": 16}, "head_dim is 16, but 8 in a"),
        ({"hidden_size": 64}, "hidden_size is 64, but 32 in a"),
        ({"intermediate_size": 96}, "intermediate_size is 96, but 64 in a"),
        (
            {"rope_parameters": None, "rope_theta": 5e5},
            'rope_parameters is {"rope_theta": 500000.0, "rope_type": "default"}, but {"rope_theta": 10000.0, '
            '"rope_type": "default"} in a',
        ),
        ({"model_type": "mistral"}, "architecture (model_type) is mistral, but llama in a"),
    ],
)
def test_a_config_that_means_something_else_is_told(
    changes: dict[str, Any], message: str, tiny: Tiny, tmp_path: Path
) -> None:
    folders = {"a": tiny(), "b": changed_config(tiny(), tmp_path / "b", **changes)}
    of_tensors = re.match("(num|head|hidden_size|intermediate|architecture)", message)
    way_out = "" if of_tensors else WHOSE_CONFIG
    assert mistakes_of(folders, tmp_path) == [("models.b", f"{message}; {way_out}leave b or a out")]


def test_a_config_that_counts_other_rows_than_there_are_is_told(tiny: Tiny, tmp_path: Path) -> None:
    folders = {"a": tiny(), "b": changed_config(tiny(), tmp_path / "b", vocab_size=128)}
    words = (
        "vocab_size in config.json is 128, but no tensor has as many rows: config.json is another model's; restore b's"
    )
    assert mistakes_of(folders, tmp_path) == [("models.b", words)]


def test_a_sliding_window_that_differs_is_told(tiny: Tiny, tmp_path: Path) -> None:
    a = tiny("mistral", sliding_window=32)
    folders = {"a": a, "b": changed_config(a, tmp_path / "b", sliding_window=16)}
    assert mistakes_of(folders, tmp_path) == [
        ("models.b", f"sliding_window is 16, but 32 in a; {WHOSE_CONFIG}leave b or a out")
    ]


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("deepseek_v3", {"routed_scaling_factor": 1.0}, "routed_scaling_factor is 1.0, but 2.5 in a"),
        ("deepseek_v3", {"norm_topk_prob": False}, "norm_topk_prob is false, but true in a"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave is false, but true in a"),
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx is true, but false in a",
        ),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is false, but true in a"),
        ("gemma2", {"layer_types": ["full_attention"] * 4}, 'layer_types is ["full_attention", "full_attention", '),
    ],
)
def test_what_single_families_compute_with_is_compared(
    family: str, changes: dict[str, Any], message: str, tiny: Tiny, tmp_path: Path
) -> None:
    folders = {"a": tiny(family), "b": changed_config(tiny(family), tmp_path / "b", **changes)}
    ((path, told),) = mistakes_of(folders, tmp_path)
    assert path == "models.b"
    assert told.startswith(message)


GPT_NEO = {"model_type": "gpt_neo", "num_layers": 4, "num_heads": 4, "window_size": 64}
GPT_NEO |= {"attention_types": [[["global", "local"], 2]]}
MPT = {"model_type": "mpt", "d_model": 32, "n_layers": 4, "n_heads": 4, "attn_config": {"alibi": True}}


@pytest.mark.parametrize(
    ("like", "config", "changes", "message"),
    [
        ("gpt2", {"model_type": "gptj", "rotary_dim": 4}, {"rotary_dim": 8}, "rotary_dim is 8, but 4 in a"),
        ("llama", GPT_NEO, {"window_size": 4}, "window_size is 4, but 64 in a"),
        (
            "llama",
            GPT_NEO,
            {"attention_types": [[["global"], 4]], "attention_layers": None},
            'attention_layers is ["global", "global", "global", "global"], but ["global", "local", "global", "local"] '
            "in a",
        ),
        ("bert", {"model_type": "falcon", "alibi": True}, {"alibi": False}, "alibi is false, but true in a"),
        ("gpt2", MPT, {"attn_config": {"alibi": False}}, "attn_config.alibi is false, but true in a"),
        ("gpt2", MPT, {"attn_config": {"softmax_scale": 0.5}}, "attn_config.softmax_scale is 0.5, but null in a"),
    ],
)
def test_a_switch_that_only_one_family_has_is_compared(
    like: str, config: dict[str, Any], changes: dict[str, Any], message: str, tiny: Tiny, tmp_path: Path
) -> None:
    """The same weights would merge without a word, into a model that computes with them as neither did."""
    a, b = tiny(like, **config), changed_config(tiny(like, seed=1, **config), tmp_path / "b", **changes)
    assert mistakes_of({"a": a, "b": tiny(like, seed=1, **config)}, tmp_path) == []
    assert mistakes_of({"a": a, "b": b}, tmp_path) == [("models.b", f"{message}; {WHOSE_CONFIG}leave b or a out")]


@pytest.mark.parametrize(
    "changes",
    [
        {"max_position_embeddings": 4096},
        {"attention_dropout": 0.1},
        {"initializer_range": 0.5},
        {"use_cache": False},
        {"eos_token_id": 3},
        {"num_key_value_heads": 2, "head_dim": None},  # the default is the same
        {"hidden_act": None},  # the default is the same
        {"rope_parameters": None, "rope_theta": 10000.0},  # how it was written before transformers 5
        {"layer_types": ["full_attention"] * 4, "sliding_window": None, "unsloth_fixed": True, "pretraining_tp": 4},
    ],
)
def test_a_config_that_means_the_same_is_not_told(changes: dict[str, Any], tiny: Tiny, tmp_path: Path) -> None:
    folders = {"a": tiny(), "b": changed_config(tiny(), tmp_path / "b", **changes)}
    assert mistakes_of(folders, tmp_path) == []


def test_the_base_must_fit_too(tiny: Tiny, tmp_path: Path) -> None:
    folders = {"base": changed_config(tiny(), tmp_path / "base", rms_norm_eps=0.1), "a": tiny(), "b": tiny(seed=1)}
    assert mistakes_of(folders, tmp_path) == [
        ("base", f"rms_norm_eps is 0.1, but 1e-06 in a; {WHOSE_CONFIG}leave base or a out")
    ]


def test_another_depth_is_one_mistake(tiny: Tiny, tmp_path: Path) -> None:
    folders = {"a": tiny(), "b": tiny(num_hidden_layers=3)}
    assert mistakes_of(folders, tmp_path) == [
        ("models.b", "has 3 layers, but a has 4; take as many of each by slices in a recipe, or leave b or a out")
    ]


def test_of_another_depth_and_padding_only_the_depth_is_told(tiny: Tiny, tmp_path: Path) -> None:
    """Merging sees to rows of tokens."""
    folders = {"a": tiny(), "b": tiny(num_hidden_layers=3, vocab_size=104)}
    ((_, message),) = mistakes_of(folders, tmp_path)
    assert message.startswith("has 3 layers, but a has 4; take as many of each by slices")


def test_layers_of_other_kinds_are_one_mistake_with_the_slices_that_mend_it(tiny: Tiny, tmp_path: Path) -> None:
    folders = {"a": tiny("deepseek_v3"), "b": tiny("deepseek_v3", first_k_dense_replace=2)}
    words = "bring layers of one kind together by slices in a recipe, or leave b or a out"
    assert mistakes_of(folders, tmp_path) == [("models.b", f"first_k_dense_replace is 2, but 1 in a; {words}")]


def test_tensors_that_are_missing_or_too_many_are_named(tiny: Tiny, tmp_path: Path) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.2.mlp.up_proj.weight"]

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(32)

    folders = {
        "a": tiny(),
        "b": changed_weights(tiny(), tmp_path / "b", drop),
        "c": changed_weights(tiny(), tmp_path / "c", add),
    }
    b, c = mistakes_of(folders, tmp_path)
    assert b[0] == "models.b"
    assert "lacks tensor model.layers.2.mlp.up_proj.weight, which a has" in b[1]
    assert c[0] == "models.c"
    assert "has tensor model.layers.1.self_attn.q_proj.bias, which a lacks" in c[1]


def test_shapes_that_differ_are_told_with_both(tiny: Tiny, tmp_path: Path) -> None:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:50].clone()

    folders = {"a": tiny(), "b": changed_weights(tiny(), tmp_path / "b", cut)}
    ((path, message),) = mistakes_of(folders, tmp_path)
    assert path == "models.b"
    assert "lm_head.weight" in message
    assert "[50, 32]" in message
    assert "[96, 32] in a" in message


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_of_a_model_of_other_sizes_no_tensors_are_listed(
    family: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not one of them fits, and its config has said why; merging by hand says no more than a manifest."""
    shutil.copytree(tiny(), tmp_path / "a")
    shutil.copytree(tiny(family, hidden_size=64), tmp_path / "b")
    told = {"llama": "hidden_size is 64, but 32 in a", "bert": "architecture (model_type) is bert, but llama in a"}
    line = f"{told[family]}; leave b or a out"
    if family == "llama":
        assert mistakes_of({name: tmp_path / name for name in "ab"}, tmp_path) == [("models.b", line)]
    assert merged(linear("a", "b"), tmp_path, capsys) == [f"  b   {line}"]


def linear(*models: str) -> dict[str, Any]:
    return {"merge_method": "linear", "models": [{"model": m, "parameters": {"weight": 0.5}} for m in models]}


def ties(base: str, *models: str) -> dict[str, Any]:
    named = [{"model": m, "parameters": {"weight": 0.5, "density": 0.5}} for m in models]
    return {"merge_method": "ties", "base_model": base, "models": named}


def merged(recipe: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What merging by hand says is wrong."""
    (folder / "recipe.json").write_text(json.dumps(recipe))
    capsys.readouterr()  # what making the models has said
    merge([str(folder / "recipe.json"), str(folder / "out")])
    return capsys.readouterr().err.splitlines()[1:]


UP = "lacks tensor model.layers.0.mlp.up_proj.weight, which"
LIKE_IT = "(and 3 more tensors like it); "
FETCH = f"{LIKE_IT}if its files are incomplete, fetch them again; else "
ITS_OWN = f"{UP} LlamaForCausalLM needs {LIKE_IT}fetch the model again, config.json and weights from one place"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (linear("base", "broken"), f"{UP} base has in layer 0 {FETCH}leave broken or base out"),
        (ties("base", "a", "broken"), f"{UP} base has in layer 0 {FETCH}leave broken or base out"),
        (linear("a", "base", "broken"), f"{UP} a has in layer 0 {FETCH}leave broken or a out"),
        (linear("broken", "a", "base"), ITS_OWN),
        (ties("broken", "a", "base"), ITS_OWN),
    ],
)
def test_only_the_model_to_blame_is_told_of_wherever_it_stands_in_a_recipe(
    recipe: dict[str, Any], message: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`base` is a name like any other there."""
    for seed, name in enumerate(("base", "a")):
        shutil.copytree(tiny(seed=seed), tmp_path / name)
    changed_weights(tiny(seed=2), tmp_path / "broken", drop_up)
    assert merged(recipe, tmp_path, capsys) == [f"  broken   {message}"]


def test_so_it_is_in_a_manifest(tiny: Tiny, tmp_path: Path) -> None:
    folders = {"a": changed_weights(tiny(), tmp_path / "a", drop_up), "b": tiny(seed=1), "base": tiny(seed=2)}
    assert mistakes_of(folders, tmp_path) == [("models.a", ITS_OWN)]


def test_what_is_wrong_with_the_others_is_told_beside_the_first(tiny: Tiny, tmp_path: Path) -> None:
    def drop_norm(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]

    folders = {
        "a": changed_weights(tiny(), tmp_path / "a", drop_up),
        "b": changed_weights(tiny(seed=1), tmp_path / "b", drop_norm),
    }
    a, b = mistakes_of(folders, tmp_path)
    assert a == ("models.a", ITS_OWN)
    assert b[1].startswith("lacks tensor model.norm.weight, which LlamaForCausalLM needs")


def add_frequencies(tensors: dict[str, torch.Tensor]) -> None:
    for layer in range(4):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["model.rotary_emb.inv_freq"] = torch.ones(4)


def add_masks(tensors: dict[str, torch.Tensor]) -> None:
    for layer in range(4):
        tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e9)


def add_short_masks(tensors: dict[str, torch.Tensor]) -> None:
    add_masks(tensors)
    for layer in range(4):
        tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.bool).tril()


@pytest.mark.parametrize("models", ["ab", "ba"])
@pytest.mark.parametrize(
    ("family", "add"), [("llama", add_frequencies), ("gpt2", add_masks), ("gpt2", add_short_masks)]
)
def test_buffers_of_older_versions_need_not_be_in_all_models(
    family: str, add: Change, models: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny(family, seed=1), tmp_path / "a")
    changed_weights(tiny(family, seed=2), tmp_path / "b", add)
    assert mistakes_of({name: tmp_path / name for name in models}, tmp_path) == []
    assert merged(linear(*models), tmp_path, capsys) == []
    assert Checkpoint.open(tmp_path / "out", "out").names == Checkpoint.open(tmp_path / "a", "a").names


def test_of_buffers_that_are_not_alike_none_is_in_the_result(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed_weights(tiny("gpt2", seed=1), tmp_path / "a", add_masks)
    changed_weights(tiny("gpt2", seed=2), tmp_path / "b", add_short_masks)
    assert merged(linear("a", "b"), tmp_path, capsys) == []
    left = set(Checkpoint.open(tmp_path / "a", "a").names) - set(Checkpoint.open(tmp_path / "out", "out").names)
    assert left == {f"transformer.h.{layer}.attn.bias" for layer in range(4)}


def test_a_candidate_of_models_with_and_without_buffers_computes(tiny: Tiny, tmp_path: Path) -> None:
    from evomerge_worker.families import LiveModel

    folders = {"a": changed_weights(tiny(seed=1), tmp_path / "a", add_frequencies), "b": tiny(seed=2)}
    sources = {name: Checkpoint.open(folder, name) for name, folder in folders.items()}
    plain = {"a": Checkpoint.open(tiny(seed=1), "a"), "b": sources["b"]}
    recipe = Recipe.model_validate(linear("a", "b"))
    states = []
    for checkpoints in (sources, plain):
        model = LiveModel.open(checkpoints["a"], device=torch.device("cpu"))
        opened = model.model
        model.merge(recipe, checkpoints, 0)
        assert model.model is opened
        states.append(model.model.state_dict())
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


def changed_vocabulary(source: Path, folder: Path, old: str, new: str) -> Path:
    """A copy of a model whose tokenizer calls the token `old` `new`."""
    shutil.copytree(source, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[new] = vocabulary.pop(old)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def test_another_vocabulary_is_told_with_an_example(tiny: Tiny, tmp_path: Path) -> None:
    folders = {"a": tiny(), "b": changed_vocabulary(tiny(), tmp_path / "b", "九", "十")}
    ((path, message),) = mistakes_of(folders, tmp_path)
    assert path == "models.b"
    assert message == (
        'the vocabulary (96 tokens) is not that of a (96 tokens): token "九" (id 95 there) is missing here, token "十" '
        "(id 95 here) is missing there; set tokenizer_source (in a manifest spec.tokenizerSource) to union, base or "
        "the name of the model whose tokens the result is to have"
    )


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        ({"x": 0, "y": 1}, None),
        ({"x": 1, "y": 0}, ': token "x" has id 1 here and 0 there, token "y" has id 0 here and 1 there; set'),
        ({"x": 0}, '(1 token) is not that of a (2 tokens): token "y" (id 1 there) is missing here; set'),
        ({"x": 0, "y": 1, "z": 2}, ': token "z" (id 2 here) is missing there; set'),
        ({"x": 0, "y": 1, "a": 2, "b": 3, "c": 4, "d": 5}, "missing there, and 1 more differ; set"),
    ],
)
def test_vocabularies_are_compared_token_by_token(ours: dict[str, int], words: str | None) -> None:
    found = difference(ours, {"x": 0, "y": 1}, "a")
    assert (found is None) if words is None else (words in str(found))


def test_a_slow_tokenizer_counts_as_much_as_a_fast_one(tiny: Tiny, tmp_path: Path) -> None:
    """BERT's vocabulary may lie in vocab.txt alone."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two"]
    folders = {}
    for name, third in (("a", "three"), ("b", "four")):
        folders[name] = Path(shutil.copytree(tiny("bert", tokenizer=False), tmp_path / name))
        (folders[name] / "vocab.txt").write_text("\n".join([*words, third]))
    ((path, message),) = mistakes_of(folders, tmp_path)
    assert path == "models.b"
    assert 'token "three" (id 7 there) is missing here, token "four" (id 7 here) is missing there' in message
