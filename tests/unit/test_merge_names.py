"""The same model under other tensor names on disk: what transformers loads as one is merged as one."""

from pathlib import Path

import pytest
import torch

from as_published import Tensors, rewritten
from evomerge_contract.recipe import Recipe
from evomerge_worker.families import LiveModel
from evomerge_worker.merge import export_checkpoint
from evomerge_worker.shards import Checkpoint
from prepare_tasks import mistakes_of, prepare_folders
from tiny_models import Tiny


def fused(tensors: Tensors) -> Tensors:
    """Mixtral as it is in memory."""
    found = {n.replace("block_sparse_moe", "mlp"): t for n, t in tensors.items() if ".experts." not in n}
    for layer in range(4):
        experts = f"model.layers.{layer}.block_sparse_moe.experts"
        w1, w2, w3 = ([tensors[f"{experts}.{i}.{w}.weight"] for i in range(2)] for w in ("w1", "w2", "w3"))
        pairs = [torch.cat(pair) for pair in zip(w1, w3, strict=True)]
        found[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.stack(pairs)
        found[f"model.layers.{layer}.mlp.experts.down_proj"] = torch.stack(w2)
    return found


def of_tensorflow(tensors: Tensors) -> Tensors:
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma"): t for n, t in tensors.items()}
    return {n.replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in old.items()}


def without_prefix(tensors: Tensors) -> Tensors:
    return {n.removeprefix("model."): t for n, t in tensors.items()}


OTHERWISE = {
    "fused experts": ("mixtral", fused),
    "gamma and beta": ("bert", of_tensorflow),
    "without a prefix": ("llama", without_prefix),
}


def linear(*models: str, **more: object) -> Recipe:
    told = [{"model": name, "parameters": {"weight": 0.25 + 0.5 * i}} for i, name in enumerate(models)]
    return Recipe.model_validate({"merge_method": "linear", "models": told, **more})


def opened(folders: dict[str, Path]) -> dict[str, Checkpoint]:
    return {name: Checkpoint.open(folder, name) for name, folder in folders.items()}


@pytest.fixture(params=OTHERWISE)
def kind(request: pytest.FixtureRequest, tiny: Tiny, tmp_path: Path) -> tuple[str, dict[str, Path]]:
    """Two models a and b, and b under other names."""
    family, change = OTHERWISE[request.param]
    other = rewritten(tiny(family, seed=2), tmp_path / "other", change)
    return family, {"a": tiny(family, seed=1), "b": tiny(family, seed=2), "other": other}


def test_the_result_is_that_of_models_of_one_name(kind: tuple[str, dict[str, Path]], tmp_path: Path) -> None:
    sources = opened(kind[1])
    export_checkpoint(linear("a", "b"), sources, tmp_path / "plain", mask_seed=0)
    export_checkpoint(linear("a", "other"), sources, tmp_path / "out", mask_seed=0)
    plain, out = Checkpoint.open(tmp_path / "plain", "plain"), Checkpoint.open(tmp_path / "out", "out")
    assert plain.names == out.names
    assert all(torch.equal(plain.tensor(name), out.tensor(name)) for name in plain.names)


def test_under_the_other_names_it_loads_as_the_same(kind: tuple[str, dict[str, Path]], tmp_path: Path) -> None:
    """The result has the names of its anchor."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    family, folders = kind
    auto = AutoModelForMaskedLM if family == "bert" else AutoModelForCausalLM
    export_checkpoint(linear("b", "a"), opened(folders), tmp_path / "plain", mask_seed=0)
    export_checkpoint(linear("other", "a"), opened(folders), tmp_path / "out", mask_seed=0)
    plain, out = (auto.from_pretrained(tmp_path / name).state_dict() for name in ("plain", "out"))
    assert plain.keys() == out.keys()
    assert all(torch.equal(tensor, out[name]) for name, tensor in plain.items())


def test_the_prepare_task_and_the_live_model_take_them_together(tiny: Tiny, tmp_path: Path) -> None:
    other = rewritten(tiny("mixtral", seed=2), tmp_path / "other", fused)
    folders = {"a": tiny("mixtral", seed=1), "other": other}
    assert not mistakes_of(folders, tmp_path)
    sources = opened(folders | {"b": tiny("mixtral", seed=2)})
    live = LiveModel.open(sources["a"], device=torch.device("cpu"))
    live.merge(linear("a", "other"), sources, 0)
    ours = {name: tensor.clone() for name, tensor in live.model.state_dict().items()}
    live.merge(linear("a", "b"), sources, 0)
    assert all(torch.equal(tensor, ours[name]) for name, tensor in live.model.state_dict().items())


@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_a_search_over_a_base_of_other_names_has_its_names(tiny: Tiny, tmp_path: Path, method: str) -> None:
    """Filters that a search writes ask for the tensors of results, which are those of the base."""
    base = rewritten(tiny("mixtral"), tmp_path / "base", fused)
    folders = {"a": tiny("mixtral", seed=1), "b": tiny("mixtral", seed=2), "base": base}
    found = prepare_folders(folders, tmp_path, methods=[method])
    assert found.layout == Checkpoint.open(base, "base").layout
    assert prepare_folders(folders, tmp_path).layout == Checkpoint.open(folders["a"], "a").layout


def test_layers_of_a_deeper_model_are_known_by_those_that_both_have(tiny: Tiny, tmp_path: Path) -> None:
    deep = tiny("mixtral", seed=2, num_hidden_layers=6)

    def six(tensors: Tensors) -> Tensors:
        found = fused(tensors)
        more = {n.replace(f"layers.{i}.", f"layers.{i - 2}."): t for i in (4, 5) for n, t in tensors.items()
                if f"layers.{i}." in n}  # fmt: skip
        later = fused(tensors | more)
        moved = {n.replace(f"layers.{i - 2}.", f"layers.{i}."): t for i in (4, 5) for n, t in later.items()
                 if f"layers.{i - 2}." in n}  # fmt: skip
        return {n: t for n, t in found.items() if "block" not in n} | moved

    other = rewritten(deep, tmp_path / "deep", six)
    sources = opened({"a": tiny("mixtral", seed=1), "plain": deep, "other": other})
    for name in ("plain", "other"):
        slices = [{"sources": [{"model": m, "layer_range": r}]} for m, r in (("a", [0, 2]), (name, [4, 6]))]
        recipe = Recipe.model_validate({"merge_method": "passthrough", "slices": slices})
        export_checkpoint(recipe, sources, tmp_path / f"out-{name}", mask_seed=0)
    plain, out = (Checkpoint.open(tmp_path / f"out-{name}", name) for name in ("plain", "other"))
    assert plain.names == out.names
    assert all(torch.equal(plain.tensor(name), out.tensor(name)) for name in plain.names)


def test_what_is_another_models_is_no_other_name(tiny: Tiny, tmp_path: Path) -> None:
    def stray(tensors: Tensors) -> Tensors:
        return {n.replace("up_proj", "upward"): t for n, t in tensors.items()}

    other = rewritten(tiny(seed=2), tmp_path / "other", stray)
    told = mistakes_of({"a": tiny(seed=1), "other": other}, tmp_path)
    assert any("up_proj" in message for _, message in told)
