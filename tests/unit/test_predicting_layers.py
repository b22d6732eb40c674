"""Layers behind num_hidden_layers that predict further tokens: no part of the stack, and carried along."""

from pathlib import Path
from typing import Any

import pytest
import torch

from as_published import predicting_on, rewritten
from evomerge_contract.recipe import Recipe
from evomerge_worker.families import LiveModel
from evomerge_worker.merge import export_checkpoint, plan_merge
from evomerge_worker.shards import Checkpoint
from prepare_tasks import mistakes_of, prepare_folders
from tiny_models import Tiny

GATE = "mlp.gate.weight"
BEHIND = "model.layers.4."


@pytest.fixture(scope="module")
def folders(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("predicting")
    return {n: predicting_on(tiny("deepseek_v3", seed=s), root / n) for n, s in (("a", 1), ("b", 2))}


def opened(folders: dict[str, Path]) -> dict[str, Checkpoint]:
    return {name: Checkpoint.open(folder, name) for name, folder in folders.items()}


def merged(recipe: dict[str, Any], folders: dict[str, Path], out: Path) -> Checkpoint:
    export_checkpoint(Recipe.model_validate(recipe), opened(folders), out, mask_seed=0)
    return Checkpoint.open(out, "out")


def linear(a: object, b: object, **more: object) -> dict[str, Any]:
    models = [{"model": "a", "parameters": {"weight": a}}, {"model": "b", "parameters": {"weight": b}}]
    return {"merge_method": "linear", "models": models, "dtype": "float32", **more}


def test_the_layout_ends_where_config_json_says(tiny: Tiny, folders: dict[str, Path]) -> None:
    assert opened(folders)["a"].layout == Checkpoint.open(tiny("deepseek_v3"), "plain").layout


def test_a_layer_that_only_config_json_tells_from_the_stack_is_none_of_it(tiny: Tiny, tmp_path: Path) -> None:
    more = rewritten(tiny("llama", num_hidden_layers=5), tmp_path / "m", lambda _: None, num_hidden_layers=4)
    said = rewritten(more, tmp_path / "said", lambda _: None, num_nextn_predict_layers=1)
    assert Checkpoint.open(said, "said").layout.layers == 4
    assert Checkpoint.open(more, "more").layout.layers == 5  # a config.json of another model, which is told


def test_a_gradient_ends_at_the_last_layer_of_the_stack(folders: dict[str, Path], tmp_path: Path) -> None:
    out, sources = merged(linear([1, 0], [0, 1]), folders, tmp_path / "out"), opened(folders)
    last = f"model.layers.3.{GATE}"
    assert torch.equal(out.tensor(last), sources["b"].tensor(last).float())


def test_slices_reach_to_the_count_of_config_json_and_the_layer_comes_along(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    sources = [{"model": name, "layer_range": [0, 4]} for name in "ab"]
    recipe = {"merge_method": "linear", "slices": [{"sources": sources}], "parameters": {"weight": 0.5}}
    out, a = merged(recipe, folders, tmp_path / "out"), opened(folders)["a"]
    assert out.names == a.names
    assert all(torch.equal(out.tensor(name), a.tensor(name)) for name in a.names if name.startswith(BEHIND))


def test_it_stands_behind_the_last_layer_of_a_deeper_result(folders: dict[str, Path], tmp_path: Path) -> None:
    slices = [{"sources": [{"model": m, "layer_range": r}]} for m, r in (("a", [0, 3]), ("b", [2, 4]))]
    out = merged({"merge_method": "passthrough", "slices": slices}, folders, tmp_path / "out")
    a, b = opened(folders)["a"], opened(folders)["b"]
    assert (out.layout.layers, out.config["num_hidden_layers"]) == (5, 5)
    assert torch.equal(out.tensor(f"model.layers.4.{GATE}"), b.tensor(f"model.layers.3.{GATE}"))
    assert torch.equal(out.tensor(f"model.layers.5.{GATE}"), a.tensor(BEHIND + GATE))
    assert "model.layers.5.eh_proj.weight" in out


def test_a_model_that_has_lost_the_layer_is_merged_as_well(
    tiny: Tiny, folders: dict[str, Path], tmp_path: Path
) -> None:
    """As one is that was trained with transformers."""
    mixed = {"a": folders["a"], "b": tiny("deepseek_v3", seed=2)}
    assert not mistakes_of(mixed, tmp_path)
    assert merged(linear(0.5, 0.5), mixed, tmp_path / "out").names == opened(folders)["a"].names


def test_the_prepare_task_reports_the_stack_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    """Of this the search makes its blocks, and slices that mergekit takes."""
    layout = prepare_folders(folders, tmp_path).layout
    assert layout.layers == 4
    assert "eh_proj.weight" not in layout.layer_tensors


def test_the_live_model_is_that_of_the_stack(folders: dict[str, Path]) -> None:
    sources, recipe = opened(folders), Recipe.model_validate(linear(0.5, 0.5))
    live = LiveModel.open(sources["a"], device=torch.device("cpu"))
    live.merge(recipe, sources, 0)
    name = f"model.layers.3.{GATE}"
    expected = (sources["a"].tensor(name).float() + sources["b"].tensor(name).float()) / 2
    assert torch.equal(live.model.state_dict()[name].float(), expected)


def test_its_own_embeddings_follow_the_vocabulary(tiny: Tiny, tmp_path: Path) -> None:
    from tiny_models import VOCABULARY

    turned = [*VOCABULARY[:4], *reversed(VOCABULARY[4:])]
    a = predicting_on(tiny("deepseek_v3", seed=1), tmp_path / "a", rows=96)
    folders = {"a": a, "b": tiny("deepseek_v3", seed=2, vocabulary=turned)}
    out = merged(linear(0.5, 0.5, tokenizer_source="b"), folders, tmp_path / "out")
    name, ours = f"{BEHIND}embed_tokens.weight", opened(folders)["a"].tensor(f"{BEHIND}embed_tokens.weight")
    assert torch.equal(out.tensor(name)[4:], ours.float()[4:].flip(0))


def test_planning_names_them_once_and_in_no_slice(folders: dict[str, Path]) -> None:
    plans = plan_merge(Recipe.model_validate(linear(0.5, 0.5)), opened(folders))
    copied = [plan for plan in plans if plan.method is None]
    assert {plan.name for plan in copied} == {n for n in opened(folders)["a"].names if n.startswith(BEHIND)}


def apart(source: Path, folder: Path, module: str) -> Path:
    """A copy of a model with a module of its own that predicts one more token, as Qwen3-Next has it."""

    def add(tensors: dict[str, torch.Tensor]) -> None:
        last = "model.layers.3."
        for name in [name for name in tensors if name.startswith(last)]:
            tensors[module + name.removeprefix(last)] = tensors[name] + 0.5

    return rewritten(source, folder, add)


@pytest.mark.parametrize(
    "module", ["mtp.layers.0.", "model.mtp.layers.0.", "model.mtp_layers.0.", "model.mtp_block.0."]
)
@pytest.mark.parametrize("having", [("a", "b"), ("a",), ("b",)])
def test_a_module_of_its_own_beside_the_layers_comes_along_with_the_first_model(
    tiny: Tiny, tmp_path: Path, module: str, having: tuple[str, ...]
) -> None:
    plain = {name: tiny("qwen3", seed=seed) for seed, name in enumerate("ab", start=1)}
    models = {n: apart(f, tmp_path / n, module) if n in having else f for n, f in plain.items()}
    assert {c.layout.model_dump_json() for c in opened(models).values()} == {
        Checkpoint.open(plain["a"], "plain").layout.model_dump_json()
    }
    out, expected = (merged(linear(0.5, 0.5), each, tmp_path / str(i)) for i, each in enumerate((models, plain)))
    assert all(torch.equal(out.tensor(name), expected.tensor(name)) for name in expected.names)
    further = set(out.names) - set(expected.names)
    a = opened(models)["a"]
    assert further == set(a.carried)
    assert bool(further) == ("a" in having)
    assert all(torch.equal(out.tensor(name), a.tensor(name).float()) for name in further)
    assert prepare_folders(models, tmp_path).layout == Checkpoint.open(plain["a"], "plain").layout
