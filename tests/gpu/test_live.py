"""A live model on a device is what `from_pretrained` gives there for the exported result, merge after merge."""

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge_contract.recipe import Recipe
from evomerge_worker.families import LiveModel
from evomerge_worker.merge import export_checkpoint
from evomerge_worker.shards import Checkpoint
from tiny_models import FAMILIES, Tiny
from vocabularies import OF_A, OF_B, OF_BASE

MASK_SEED = 3


def sources_of(tiny: Tiny, family: str) -> dict[str, Checkpoint]:
    return {n: Checkpoint.open(tiny(family, seed=s), n) for n, s in (("a", 1), ("b", 2), ("base", 0))}


def recipe(method: str, weight: float, **keys: Any) -> Recipe:
    """Both models, the first of them with this weight."""
    models = [
        {"model": "a", "parameters": {"weight": weight, "density": 0.6}},
        {"model": "b", "parameters": {"weight": [0.2, 1.0], "density": [0.3, 0.9]}},
    ]
    return Recipe.model_validate({"merge_method": method, "base_model": "base", "models": models, **keys})


def assert_loaded(live: LiveModel, done: Recipe, sources: dict[str, Checkpoint], folder: Path) -> None:
    """Parameters to the bit, and the same answer to the same tokens."""
    from transformers import AutoModelForCausalLM

    device = live.model.device
    export_checkpoint(done, sources, folder, mask_seed=MASK_SEED, device=device)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device)
    ours, theirs = (dict(m.named_parameters(remove_duplicate=False)) for m in (live.model, loaded))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.device == device
        assert torch.equal(tensor, theirs[name]), name
    tokens = torch.arange(4, 20, device=device)[None]
    with torch.no_grad():
        torch.testing.assert_close(live.model(tokens).logits, loaded(tokens).logits)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "bert"])
def test_a_live_merge_is_the_loaded_export(device: torch.device, tiny: Tiny, tmp_path: Path, family: str) -> None:
    sources = sources_of(tiny, family)
    live = LiveModel.open(sources["base"], device=device)
    assert live.model.device.type == device.type
    live.merge(recipe("dare_linear", 0.3), sources, MASK_SEED)
    live.merge(recipe("ties", 0.7), sources, MASK_SEED)
    assert_loaded(live, recipe("ties", 0.7), sources, tmp_path / "out")


def test_a_live_merge_of_another_vocabulary_is_the_loaded_export(
    device: torch.device, tiny: Tiny, tmp_path: Path
) -> None:
    given = (("a", 1, OF_A), ("b", 2, OF_B), ("base", 0, OF_BASE))
    sources = {n: Checkpoint.open(tiny("llama", seed=s, vocabulary=v), n) for n, s, v in given}
    done = recipe("task_arithmetic", 0.7, tokenizer_source="union")
    live = LiveModel(device, trust_remote_code=False)
    live.open_for(done, sources)
    live.merge(done, sources, MASK_SEED)
    assert_loaded(live, done, sources, tmp_path / "out")


def test_merge_after_merge_takes_no_more_of_the_devices_memory(device: torch.device, tiny: Tiny) -> None:
    sources = sources_of(tiny, "llama")
    live = LiveModel.open(sources["base"], device=device)
    live.merge(recipe("ties", 0.5), sources, MASK_SEED)
    before = allocated(device)
    for number in range(5):
        live.merge(recipe("ties", number / 10), sources, MASK_SEED)
    assert allocated(device) == before


def allocated(device: torch.device) -> int:
    """Bytes that torch holds there; of a CPU it does not say."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
