"""Models whose configs differ in what they compute: refused by default, merged once it is said whose config counts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evomerge_contract.recipe import Recipe
from evomerge_worker.errors import InputError
from evomerge_worker.families import LiveModel
from evomerge_worker.merge import export_checkpoint
from evomerge_worker.shards import Checkpoint
from evomerge_worker.standalone import merge
from prepare_tasks import mistakes_of
from tiny_models import Tiny
from vocabularies import OF_A

OLD = {"sliding_window": 16, "rms_norm_eps": 1e-5}
"""Mistral 0.1 beside 0.2, whose window is gone and whose rope base is a hundred times as large."""
NEW = {"sliding_window": None, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "rms_norm_eps": 1e-6}
CPU = torch.device("cpu")


@pytest.fixture
def folders(tiny: Tiny) -> dict[str, Path]:
    return {"old": tiny("mistral", seed=1, **OLD), "new": tiny("mistral", seed=2, **NEW)}


def opened(folders: dict[str, Path]) -> dict[str, Checkpoint]:
    return {name: Checkpoint.open(folder, name) for name, folder in folders.items()}


def linear(*models: str, **more: Any) -> Recipe:
    told = [{"model": name, "parameters": {"weight": 0.5}} for name in models]
    return Recipe.model_validate({"merge_method": "linear", "models": told, "dtype": "float32", **more})


def computes(config: dict[str, Any]) -> list[Any]:
    return [config["sliding_window"], config["rms_norm_eps"], config["rope_parameters"]["rope_theta"]]


def test_it_is_refused_with_the_way_out_and_taken_once_that_is_gone(folders: dict[str, Path], tmp_path: Path) -> None:
    told = mistakes_of(folders, tmp_path)
    assert {path for path, _ in told} == {"models.new"}
    way_out = "say whose config counts (in a manifest spec.configSource, in a recipe config_source), or leave "
    assert all(way_out in message for _, message in told)
    assert not mistakes_of(folders, tmp_path, config_source="old")


@pytest.mark.parametrize("giver", ["old", "new"])
@pytest.mark.parametrize("first", ["old", "new"])
def test_the_result_computes_as_the_one_named(folders: dict[str, Path], tmp_path: Path, first: str, giver: str) -> None:
    from transformers import AutoModelForCausalLM

    sources, second = opened(folders), {"old": "new", "new": "old"}[first]
    recipe = linear(first, second, config_source=giver)
    export_checkpoint(recipe, sources, tmp_path / "out", mask_seed=0)
    out = Checkpoint.open(tmp_path / "out", "out")
    assert computes(out.config) == computes(sources[giver].config)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    live = LiveModel(CPU, trust_remote_code=False)
    live.open_for(recipe, sources)
    live.merge(recipe, sources, 0)
    prompt = torch.arange(4, 60)[None]
    with torch.no_grad():
        assert torch.equal(live.model(prompt).logits, loaded(prompt).logits)
    name = "model.layers.3.mlp.up_proj.weight"
    expected = (sources[first].tensor(name).float() + sources[second].tensor(name).float()) / 2
    assert torch.equal(out.tensor(name), expected)


def test_a_model_alone_keeps_its_own(folders: dict[str, Path], tmp_path: Path) -> None:
    sources = opened(folders)
    export_checkpoint(linear("new", config_source="old"), sources, tmp_path / "out", mask_seed=0)
    assert computes(Checkpoint.open(tmp_path / "out", "out").config) == computes(sources["new"].config)


def test_tokens_and_head_stay_the_results_own(tiny: Tiny, tmp_path: Path) -> None:
    folders = {"a": tiny("llama-tied", seed=1, vocabulary=OF_A), "b": tiny("llama", seed=2, rms_norm_eps=1e-3)}
    sources = opened(folders)
    recipe = linear("a", "b", config_source="b", tokenizer_source="a", chat_template="{{ 'mine' }}")
    export_checkpoint(recipe, sources, tmp_path / "out", mask_seed=0)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ 'mine' }}"
    config = Checkpoint.open(tmp_path / "out", "out").config
    assert (config["rms_norm_eps"], config["vocab_size"]) == (1e-3, len(OF_A))
    assert config["eos_token_id"] == OF_A.index("</s>")
    assert config["tie_word_embeddings"] is False


def test_a_config_for_another_depth_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    sources = opened({"a": tiny(seed=1), "deep": tiny(seed=2, num_hidden_layers=6)})
    slices = [{"sources": [{"model": m, "layer_range": r}]} for m, r in (("a", [0, 4]), ("deep", [4, 6]))]
    keys = {"merge_method": "passthrough", "slices": slices, "config_source": "deep"}
    with pytest.raises(InputError) as caught:
        export_checkpoint(Recipe.model_validate(keys), sources, tmp_path / "out", mask_seed=0)
    assert [(p.path, p.message) for p in caught.value.problems] == [
        (
            "models.a",
            "is llama with 4 layers, and cannot have the config of deep (config_source), which is llama with 6 layers; "
            "name a model of that architecture with as many layers",
        )
    ]


def test_a_merge_by_hand_takes_the_key(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    for name, folder in folders.items():
        (tmp_path / name).symlink_to(folder)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(linear("old", "new").plain()))
    assert merge([str(recipe), str(tmp_path / "out")]) == 65
    assert "config_source" in capsys.readouterr().err
    recipe.write_text(yaml.safe_dump(linear("old", "new", config_source="new").plain()))
    assert merge([str(recipe), str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["sliding_window"] is None


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({}, ""),
        ({"hidden_size": 64}, "hidden_size is 64, but 32 in old, which cannot have this config; let config_source"),
        ({"num_attention_heads": 2, "num_key_value_heads": 1}, "num_attention_heads is 2, but 4 in old"),
        ({"num_hidden_layers": 6}, "cannot have the config of donor (config_source), which is mistral with 6 layers"),
    ],
)
def test_a_donor_that_is_not_merged_must_be_of_the_same_sizes(
    folders: dict[str, Path],
    tiny: Tiny,
    tmp_path: Path,
    sizes: dict[str, int],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its tokens may be others."""
    donor = tiny("mistral", seed=3, vocabulary=OF_A, rms_norm_eps=1e-3, **sizes)
    for name, folder in {**folders, "donor": donor}.items():
        (tmp_path / name).symlink_to(folder)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(linear("old", "new", config_source="donor").plain()))
    assert merge([str(recipe), str(tmp_path / "out")]) == (65 if sizes else 0)
    assert told in capsys.readouterr().err


def test_a_name_that_is_no_model_is_told_by_the_key(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old").symlink_to(folders["old"])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(linear("old", config_source="nobody").plain()))
    assert merge([str(recipe), str(tmp_path / "out")]) == 65
    said = capsys.readouterr().err
    assert "recipe.config_source" in said
    assert "nobody is not a model of the recipe" in said
