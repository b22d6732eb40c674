"""Heads: what the head of a model is counts, and not what its config.json says of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from as_published import Tensors, rewritten
from evomerge_contract.manifest import Groups
from evomerge_contract.recipe import Recipe
from evomerge_operator.spaces.groups import slice_tensors
from evomerge_worker.families import LiveModel
from evomerge_worker.merge import export_checkpoint
from evomerge_worker.shards import Checkpoint
from prepare_tasks import mistakes_of, prepare_folders
from tiny_models import Tiny
from vocabularies import OF_A

HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
KINDS = ("tied", "own", "copy", "odd")


@pytest.fixture(scope="module")
def folders(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tied; with a head of its own; with a copy that is not said to be tied; said to be tied, with another head."""
    root = tmp_path_factory.mktemp("heads")

    def head(factor: float) -> Callable[[Tensors], Tensors]:
        return lambda tensors: tensors | {HEAD: tensors[EMBEDDINGS] * factor}

    tied = tiny("llama-tied", seed=4)
    return {
        "tied": tiny("llama-tied", seed=1),
        "own": tiny("llama", seed=2),
        "copy": rewritten(tiny("llama", seed=3), root / "copy", head(1)),
        "odd": rewritten(tied, root / "odd", head(2)),
    }


def linear(*models: str, **more: object) -> Recipe:
    told = [{"model": name, "parameters": {"weight": 0.25 + 0.5 * i}} for i, name in enumerate(models)]
    return Recipe.model_validate({"merge_method": "linear", "models": told, "dtype": "float32", **more})


def head_of(checkpoint: Checkpoint) -> torch.Tensor:
    return checkpoint.tensor(HEAD if HEAD in checkpoint else EMBEDDINGS).float()


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_the_result_has_the_merged_head_and_says_so(
    folders: dict[str, Path], tmp_path: Path, first: str, second: str
) -> None:
    from transformers import AutoModelForCausalLM

    if first == second:
        return
    sources = {name: Checkpoint.open(folders[name], name) for name in (first, second)}
    expected = 0.25 * head_of(sources[first]) + 0.75 * head_of(sources[second])
    recipe = linear(first, second)
    export_checkpoint(recipe, sources, tmp_path / "out", mask_seed=0)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(loaded.lm_head.weight.detach(), expected)
    assert loaded.config.tie_word_embeddings == (HEAD not in Checkpoint.open(tmp_path / "out", "out"))
    live = LiveModel.open(sources[first], device=torch.device("cpu"), dtype=torch.float32)
    live.merge(recipe, sources, 0)
    assert torch.equal(live.model.lm_head.weight, loaded.lm_head.weight)


def test_the_prepare_task_takes_all_kinds_together(folders: dict[str, Path], tmp_path: Path) -> None:
    for first in KINDS:
        assert not mistakes_of({first: folders[first]} | folders, tmp_path)


def test_a_filter_for_the_head_asks_for_the_embeddings_of_a_tied_model_too(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    sources = {name: Checkpoint.open(folders[name], name) for name in ("own", "tied")}
    weight = [{"filter": "lm_head", "value": 1}, {"value": 0}]
    models = [{"model": "own", "parameters": {"weight": [{"filter": "lm_head", "value": 0}, {"value": 1}]}}]
    models += [{"model": "tied", "parameters": {"weight": weight}}]
    recipe = Recipe.model_validate({"merge_method": "linear", "models": models})
    export_checkpoint(recipe, sources, tmp_path / "out", mask_seed=0)
    out = Checkpoint.open(tmp_path / "out", "out")
    assert torch.equal(out.tensor(HEAD), sources["tied"].tensor(EMBEDDINGS))
    assert torch.equal(out.tensor(EMBEDDINGS), sources["own"].tensor(EMBEDDINGS))


def test_a_tied_base_lends_its_embeddings_to_the_task_vectors_of_heads(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    sources = {name: Checkpoint.open(folders[name], name) for name in ("own", "tied")}
    recipe = linear("own", merge_method="task_arithmetic", base_model="tied")
    export_checkpoint(recipe, sources, tmp_path / "out", mask_seed=0)
    base, own = head_of(sources["tied"]), head_of(sources["own"])
    torch.testing.assert_close(Checkpoint.open(tmp_path / "out", "o").tensor(HEAD), base + 0.25 * (own - base))


def test_of_slices_the_head_is_that_of_the_last(folders: dict[str, Path], tmp_path: Path) -> None:
    sources = {name: Checkpoint.open(folders[name], name) for name in ("own", "tied")}
    for order in (("own", "tied"), ("tied", "own")):
        ranges = zip(order, ([0, 2], [2, 4]), strict=True)
        slices = [{"sources": [{"model": name, "layer_range": layers}]} for name, layers in ranges]
        recipe = Recipe.model_validate({"merge_method": "passthrough", "slices": slices})
        export_checkpoint(recipe, sources, tmp_path / order[0], mask_seed=0)
        out = Checkpoint.open(tmp_path / order[0], "out")
        assert torch.equal(out.tensor(HEAD).float(), head_of(sources[order[1]]))
        assert torch.equal(out.tensor(EMBEDDINGS), sources[order[0]].tensor(EMBEDDINGS))


def test_vocabularies_of_tied_and_untied_models_are_united(tiny: Tiny, tmp_path: Path) -> None:
    own = Checkpoint.open(tiny("llama", seed=2), "own")
    sources = {"tied": Checkpoint.open(tiny("llama-tied", seed=1, vocabulary=OF_A), "tied"), "own": own}
    export_checkpoint(linear("tied", "own", tokenizer_source="own"), sources, tmp_path / "out", mask_seed=0)
    out = Checkpoint.open(tmp_path / "out", "out")
    row = OF_A.index("0")
    ours, theirs = own.tensor(HEAD)[4].float(), sources["tied"].tensor(EMBEDDINGS)[row].float()
    torch.testing.assert_close(out.tensor(HEAD)[4], 0.25 * theirs + 0.75 * ours)


@pytest.mark.parametrize("order", [("tied", "own"), ("own", "tied"), ("tied", "odd"), ("copy", "own")])
def test_a_search_groups_the_head_with_what_comes_after_the_layers_whichever_model_is_first(
    folders: dict[str, Path], tmp_path: Path, order: tuple[str, ...]
) -> None:
    layout = prepare_folders({name: folders[name] for name in order}, tmp_path).layout
    assert layout.after == [HEAD, "model.norm.weight"]
    for groups, of_head in (
        ({"layers": 2}, "head"),
        ({"everyLayer": True}, "head"),
        ({"components": True}, "embeddings"),
    ):
        *_, last = slice_tensors(Groups.model_validate(groups), layout)
        assert last.group_of[HEAD] == of_head


def test_a_search_over_models_that_all_tie_their_heads_knows_of_none(folders: dict[str, Path], tmp_path: Path) -> None:
    two = {"tied": folders["tied"], "other": folders["tied"]}
    assert prepare_folders(two, tmp_path).layout.after == ["model.norm.weight"]
