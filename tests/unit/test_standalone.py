"""Merging a recipe by hand: what is written, and every mistake in the recipe and its models at once."""

import json
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evomerge_worker.shards import Checkpoint
from evomerge_worker.standalone import merge
from faults import Change, changed, cut_head, drop_up, quantised
from prepare_tasks import Tiny, changed_config, changed_weights
from tiny_models import SPECIALS
from vocabularies import OF_A, OF_B, OF_BASE


def written(recipe: dict[str, Any], folder: Path) -> list[str]:
    """The arguments of a merge of `recipe`, written to `folder`."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return [str(folder / "recipe.yaml"), str(folder / "out")]


def copy_a_and_b(tiny: Tiny, folder: Path) -> None:
    """Two models that fit together, beside the recipe."""
    for seed, name in enumerate("ab"):
        shutil.copytree(tiny(seed=seed), folder / name)


def linear(*models: str | Path) -> dict[str, Any]:
    named = [{"model": str(model), "parameters": {"weight": 0.5}} for model in models]
    return {"merge_method": "linear", "models": named}


def test_paths_are_relative_to_the_recipe(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tiny(seed=1), tmp_path / "a")
    shutil.copytree(tiny(seed=2), tmp_path / "b")
    assert merge(written(linear("a", "b"), tmp_path)) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    assert Checkpoint.open(tmp_path / "out", "out").names == Checkpoint.open(tmp_path / "a", "a").names


def test_models_of_other_tokens_are_merged_by_tokenizer_source(tiny: Tiny, tmp_path: Path) -> None:
    """Also with the tokenizer of a model that is not merged; `base` is never a folder of that name."""
    for name, vocabulary in (("a", OF_A), ("b", OF_B), ("base", OF_BASE)):
        shutil.copytree(tiny(vocabulary=vocabulary), tmp_path / name)
    rows = {"union": 103, "b": len(OF_B), "base": len(OF_A), str(tmp_path / "base"): len(OF_BASE)}
    for source, count in rows.items():
        assert merge(written(linear("a", "b") | {"tokenizer_source": source}, tmp_path)) == 0
        assert Checkpoint.open(tmp_path / "out", "out").config["vocab_size"] == count, source
        shutil.rmtree(tmp_path / "out")


def test_models_of_other_tokens_are_refused_as_the_recipe_names_them(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, vocabulary in (("a", OF_A), ("b", OF_B), ("greek", [*SPECIALS, *"αβγδεζ"])):
        shutil.copytree(tiny(vocabulary=vocabulary), tmp_path / name)
    capsys.readouterr()  # what making the models has said
    assert merge(written(linear("a", "b"), tmp_path)) == 65
    (told,) = capsys.readouterr().err.splitlines()[1:]
    assert told.startswith("  b   the vocabulary (99 tokens) is not that of a (98 tokens): token ")
    assert merge(written(linear("a", "greek") | {"tokenizer_source": "union"}, tmp_path)) == 65
    (told,) = capsys.readouterr().err.splitlines()[1:]
    assert told.startswith("  greek   its tokenizer shares 0 of its 6 tokens with that of a, which has 94: ")


def test_models_that_do_not_fit_are_all_told_as_the_recipe_names_them(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another epsilon or vocabulary would merge without complaint, into a model that computes nonsense."""

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"][0, 0] = float("nan")

    shutil.copytree(tiny(seed=1), tmp_path / "a")
    changed_config(tiny(seed=2), tmp_path / "b", rms_norm_eps=0.1)
    changed_weights(tiny(seed=2), tmp_path / "c", damage)
    vocabulary = Path(shutil.copytree(tiny(seed=2), tmp_path / "d")) / "tokenizer.json"
    tokens = json.loads(vocabulary.read_text())
    tokens["model"]["vocab"] |= {"a": tokens["model"]["vocab"]["b"], "b": tokens["model"]["vocab"]["a"]}
    vocabulary.write_text(json.dumps(tokens))
    recipe = linear("a", "b", "c", "d", "nowhere") | {"parameters": {"wieght": 1}}
    capsys.readouterr()  # what making the models has said
    assert merge(written(recipe, tmp_path)) == 65
    first, *told = capsys.readouterr().err.splitlines()
    assert first.endswith("recipe.yaml: 5 mistakes")
    assert [line.split()[0] for line in told] == ["b", "c", "d", "nowhere", "recipe.parameters.wieght"]
    assert "rms_norm_eps is 0.1, but 1e-06 in a" in told[0]
    assert "lm_head.weight holds NaN" in told[1]
    assert "the vocabulary (96 tokens) is not that of a" in told[2]
    assert not (tmp_path / "out").exists()


def test_a_recipe_and_all_its_models_are_told_at_once(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Layer ranges are held against a quantised model too: its config says how many it has."""
    shutil.copytree(tiny(seed=1), tmp_path / "a")
    shutil.copytree(tiny(num_hidden_layers=6), tmp_path / "deep")
    quantised(tiny(seed=2), tmp_path / "gptq", "gptq")
    sources = [{"model": "a", "layer_range": [0, 5]}, {"model": "gptq", "layer_range": [4, 9]}]
    recipe = {
        "merge_method": "linear",
        "slices": [
            {"sources": sources},
            {"sources": [{"model": "deep", "layer_range": [6, 8]}]},
        ],
        "parameters": {"weight": 1},
    }
    capsys.readouterr()  # what making the models has said
    assert merge(written(recipe, tmp_path)) == 65
    _, *told = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in told] == [
        "gptq",
        *(f"recipe.slices[{i}].sources[{j}].layer_range" for i, j in [(0, 0), (0, 1), (1, 0)]),
    ]
    assert "is quantised (quant_method gptq in config.json)" in told[0]
    assert "[0, 5) is not a range within the 4 layers of a" in told[1]
    assert "[4, 9) is not a range within the 4 layers of gptq" in told[2]
    assert "[6, 8) is not a range within the 6 layers of deep" in told[3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "deep", "gptq", "recipe.yaml"]


def test_parameters_that_are_missing_are_told_beside_what_does_not_fit(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny(seed=1), tmp_path / "a")
    changed_weights(tiny(seed=2), tmp_path / "b", cut_head)
    recipe = {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b", "parameters": {"weight": 1}}]}
    capsys.readouterr()
    assert merge(written(recipe, tmp_path)) == 65
    _, *told = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in told] == ["b", "recipe.weight[a]"]
    assert "tensor lm_head.weight has shape [50, 32], but [96, 32] in a; leave b or a out" in told[0]
    assert "linear needs a weight for a" in told[1]
    assert not (tmp_path / "out").exists()


def test_slices_take_layers_of_models_of_different_depth(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny("gemma2", seed=1), tmp_path / "a")
    shutil.copytree(tiny("gemma2", seed=2, num_hidden_layers=6), tmp_path / "b")
    slices = [
        {"sources": [{"model": "a", "layer_range": [0, 3]}]},
        {"sources": [{"model": "b", "layer_range": [1, 6]}]},
    ]
    recipe = {"merge_method": "linear", "slices": slices, "parameters": {"weight": 1}}
    assert merge(written(recipe, tmp_path)) == 0
    assert Checkpoint.open(tmp_path / "out", "out").config["num_hidden_layers"] == 8


def test_whole_models_of_different_depth_are_refused(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny(seed=1), tmp_path / "a")
    shutil.copytree(tiny(seed=2, num_hidden_layers=6), tmp_path / "b")
    assert merge(written(linear("a", "b"), tmp_path)) == 65
    (told,) = capsys.readouterr().err.splitlines()[1:]
    assert told == "  b   has 6 layers, but a has 4; take as many of each by slices in a recipe, or leave b or a out"


def test_slices_may_leave_out_what_does_not_fit(tiny: Tiny, tmp_path: Path) -> None:
    """Layers that are not merged with each other need not be of one kind; each takes its kind along."""
    shutil.copytree(tiny("deepseek_v3", seed=1), tmp_path / "a")
    shutil.copytree(tiny("deepseek_v3", seed=2, first_k_dense_replace=2), tmp_path / "b")
    assert merge(written(stacked(("a", 0, 3), ("b", 2, 4)), tmp_path)) == 0
    config = Checkpoint.open(tmp_path / "out", "out").config
    assert (config["num_hidden_layers"], config["first_k_dense_replace"]) == (5, 1)


def test_stacked_layers_keep_their_kinds(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full, sliding = "full_attention", "sliding_attention"
    shutil.copytree(tiny("gemma2", seed=1), tmp_path / "a")
    changed_config(tiny("gemma2", seed=2), tmp_path / "b", layer_types=[full, sliding] * 2)
    assert merge(written(stacked(("a", 0, 3), ("b", 1, 4)), tmp_path)) == 0
    config = Checkpoint.open(tmp_path / "out", "out").config
    assert config["layer_types"] == [sliding, full, sliding, sliding, full, sliding]
    shutil.rmtree(tmp_path / "out")
    capsys.readouterr()
    assert merge(written(stacked(("a", 0, 2), ("b", 2, 4)), tmp_path)) == 65  # in place: the config is a's
    assert "b   layer_types is " in capsys.readouterr().err


def stacked(*slices: tuple[str, int, int]) -> dict[str, Any]:
    """Layers [start, end) of models, one after the other."""
    sources = [[{"model": model, "layer_range": [start, end]}] for model, start, end in slices]
    return {"merge_method": "passthrough", "slices": [{"sources": source} for source in sources]}


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        (drop_up, {}, "lacks tensor model.layers.0.mlp.up_proj.weight, which LlamaForCausalLM needs"),
        (cut_head, {}, "tensor lm_head.weight has shape [50, 32], but config.json asks for [96, 32]"),
        (dict, {"num_hidden_layers": 6}, "its tensors make 4 layers, but config.json says 6"),
        (dict, {"num_hidden_layers": 2}, "its tensors make 4 layers, but config.json says 2"),
        (dict, {"model_type": "bert"}, "lacks tensor bert.embeddings.LayerNorm.bias, which BertLMHeadModel needs"),
    ],
)
def test_models_that_are_not_what_their_config_says_are_not_merged(
    change: Change,
    config: dict[str, Any],
    words: str,
    tiny: Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for seed, name in enumerate("ab"):
        changed(tiny(seed=seed), tmp_path / name, change, **config)
    capsys.readouterr()
    assert merge(written(linear("a", "b"), tmp_path)) == 65
    told = capsys.readouterr().err
    assert f"  a   {words}" in told
    assert f"  b   {words}" in told
    assert not (tmp_path / "out").exists()


def test_models_that_are_no_causal_language_models_are_merged(tiny: Tiny, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        changed_config(tiny("bert", seed=seed), tmp_path / name)
    assert merge(written(linear("a", "b"), tmp_path)) == 0


def test_a_model_that_only_gives_its_tokenizer_need_not_fit(tiny: Tiny, tmp_path: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"][0, 0] = float("nan")

    copy_a_and_b(tiny, tmp_path)
    changed_weights(tiny(num_hidden_layers=6, vocabulary=OF_BASE, rms_norm_eps=0.1), tmp_path / "giver", damage)
    assert merge(written(linear("a", "b") | {"tokenizer_source": "giver"}, tmp_path)) == 0
    assert Checkpoint.open(tmp_path / "out", "out").config["vocab_size"] == len(OF_BASE)


def test_keys_words_numbers_and_models_are_told_at_once(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny(seed=1), tmp_path / "a")
    sources = [{"model": "a", "layer_range": [0, 9]}, {"model": "org/name", "layer_range": [0, 9]}]
    recipe = {"merge_method": "linear", "dtype": "float64", "slices": [{"sources": sources}]}
    recipe["parameters"] = {"wieght": 1}
    capsys.readouterr()
    assert merge(written(recipe, tmp_path)) == 65
    _, *told = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in told] == [
        "org/name",
        "recipe.parameters.wieght",
        "recipe.dtype",
        "recipe.slices[0].sources[0].layer_range",
    ]


def test_an_empty_list_of_slices_is_none(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny(seed=1), tmp_path / "a")
    assert merge(written(linear("a") | {"slices": []}, tmp_path)) == 0


def test_of_two_merges_into_one_folder_one_wins_and_the_other_says_so(
    tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy_a_and_b(tiny, tmp_path)
    arguments = written(linear("a", "b"), tmp_path)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        codes = list(pool.map(merge, [arguments] * 2))
    assert sorted(codes) == [0, 65]
    assert Checkpoint.open(tmp_path / "out", "out").names == Checkpoint.open(tmp_path / "a", "a").names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out", "recipe.yaml"]
    assert re.search("exists already|has appeared meanwhile", capfd.readouterr().err)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    for out, words in (("x" * 300, "File name too long"), ("recipe.yaml/out", "Not a directory")):
        assert merge([str(tmp_path / "recipe.yaml"), str(tmp_path / out)]) == 65
        assert f"cannot be written: {words}; choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (linear("a", "b", "./a"), "a takes part twice; give it once"),
        (linear("a", "b", "{}/b/"), "b takes part twice; give it once"),
        (
            {"merge_method": "model_stock", "base_model": "b/", "models": [{"model": "a"}, {"model": "b"}]},
            "model_stock merges at least 2 models beside its base_model; here are 1",
        ),
    ],
)
def test_a_folder_under_two_spellings_is_one_model(
    recipe: dict[str, Any], words: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_a_and_b(tiny, tmp_path)
    capsys.readouterr()  # what making the models has said
    arguments = written(recipe, tmp_path)
    Path(arguments[0]).write_text(Path(arguments[0]).read_text().replace("{}", str(tmp_path)))
    assert merge(arguments) == 65
    (told,) = capsys.readouterr().err.splitlines()[1:]
    assert told == f"  recipe.models   {words}"


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ({"tokenizer_source": "Union"}, "recipe.tokenizer_source"),
        ({"tokenizer": {"source": "Union"}}, "recipe.tokenizer.source"),
    ],
)
def test_a_tokenizer_source_that_is_nothing_is_told_by_its_key(
    keys: dict[str, Any], path: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_a_and_b(tiny, tmp_path)
    capsys.readouterr()  # what making the models has said
    assert merge(written(linear("a", "b") | keys, tmp_path)) == 65
    (told,) = capsys.readouterr().err.splitlines()[1:]
    words = "Union is not union, base or a model of the recipe, and of another model: there is no folder "
    assert told.startswith(f"  {path}   {words}")


def test_a_faulty_parameter_does_not_hide_what_is_wrong_with_the_models(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny(seed=1), tmp_path / "a")
    recipe = linear("a", "nowhere")
    recipe["models"][0]["parameters"]["weight"] = "much"
    capsys.readouterr()  # what making the models has said
    assert merge(written(recipe, tmp_path)) == 65
    _, *told = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in told] == ["nowhere", "recipe.models[0].parameters.weight"]


def test_a_server_that_does_not_answer_is_told_by_the_recipes_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    assert merge(written(linear("s3://bucket/a", "s3://bucket/b"), tmp_path)) == 75
    told = capsys.readouterr().err
    assert told.startswith("evomerge: s3://bucket/a, s3://bucket/b: could not be read: http://127.0.0.1:9 cannot be")
    assert "models." not in told


def test_a_published_recipe_is_merged_with_a_warning_for_each_key_that_mergekit_passes_over(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_a_and_b(tiny, tmp_path)
    plain, published = linear("a", "b"), linear("a", "b")
    for model in published["models"]:
        model["parameters"]["density"] = 0.5
    published |= {"name": "mix", "parameters": {"int8_mask": True}, "random_seed": 0}
    assert merge(written(plain, tmp_path)) == 0
    (tmp_path / "out").rename(tmp_path / "expected")
    capsys.readouterr()
    assert merge(written(published, tmp_path)) == 0
    warnings = capsys.readouterr().err.splitlines()
    places = [
        line.removeprefix(f"{tmp_path / 'recipe.yaml'}: ").split()[0] for line in warnings if "passed over" in line
    ]
    assert places == [
        "recipe.name",
        "recipe.random_seed",
        "recipe.models[0].parameters.density",
        "recipe.parameters.int8_mask",
    ]
    merged = Checkpoint.open(tmp_path / "out", "out")
    expected = Checkpoint.open(tmp_path / "expected", "expected")
    assert all(torch.equal(merged.tensor(name), expected.tensor(name)) for name in expected.names)


def test_servers_that_all_lack_the_same_are_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert merge(written(linear(*(f"s3://bucket/{i}" for i in range(5))), tmp_path)) == 75
    told = capsys.readouterr().err
    assert told.count("without S3 credentials") == 1
    assert told.startswith("evomerge: s3://bucket/0, s3://bucket/1 and 3 more: cannot be read without S3 credentials")
