"""Merging on a device gives what it gives on a CPU, within rounding, for every method."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from closeness import NORM_STEPS, OPERAND_STEPS, apart, operands
from evomerge_contract.methods import METHODS
from evomerge_contract.recipe import Recipe
from evomerge_worker.errors import out_of_memory
from evomerge_worker.merge import Merger, TensorPlan, export_checkpoint, native, plan_merge
from evomerge_worker.merge.draws import Draws
from evomerge_worker.merge.statistics_cache import Statistics
from evomerge_worker.shards import Checkpoint
from merge_corpus import CORPUS
from tiny_models import Tiny

MASK_SEED = 11
BY_NORMS = ("nuslerp", "multislerp", "karcher", "model_stock", "slerp", "della", "sce")
"""What sums of many elements decide: both sides add up in another order."""


@contextmanager
def in_torch(device: torch.device) -> Iterator[None]:
    """On a device formulas are carried out by torch. A CPU that takes its place leaves its compiled loops aside."""
    with pytest.MonkeyPatch.context() as patch:
        if device.type == "cpu":
            patch.setattr(native, "ready", lambda formula, out: None)
        yield


def test_the_corpus_holds_every_method() -> None:
    assert {entry.recipe["merge_method"] for entry in CORPUS.values()} == METHODS.keys()


@pytest.mark.parametrize("known", [False, True], ids=["once", "in a session"])
@pytest.mark.parametrize("name", CORPUS)
def test_a_recipe_gives_what_it_gives_on_a_cpu(device: torch.device, tiny: Tiny, name: str, known: bool) -> None:
    """Known: a session keeps statistics of its sources; `evomerge merge` finds out each time what a method needs."""
    sources = CORPUS[name].checkpoints(tiny)
    plans = plan_merge(Recipe.model_validate(CORPUS[name].over(sources)), sources)
    here = dict(Merger(sources, MASK_SEED, statistics=Statistics() if known else None).merged(plans))
    with in_torch(device):
        there = dict(Merger(sources, MASK_SEED, device, Statistics() if known else None).merged(plans))
    assert list(there) == list(here)
    for plan in plans:
        assert there[plan.name].device.type == device.type
        _compare(plan, there[plan.name].cpu(), here[plan.name], sources)


def _compare(plan: TensorPlan, there: torch.Tensor, here: torch.Tensor, sources: dict[str, Checkpoint]) -> None:
    assert (there.dtype, there.shape) == (here.dtype, here.shape), plan.name
    if plan.method is None or not there.numel():
        assert torch.equal(there, here), plan.name
        return
    largest, steps = operands(plan, sources), OPERAND_STEPS
    if plan.method in BY_NORMS:
        largest, steps = torch.maximum(largest, here.double().abs()), NORM_STEPS["float64"]
    assert float(apart(there, here, largest, steps).max()) <= 1, plan.name


def test_masks_are_drawn_as_on_a_cpu_to_the_bit(device: torch.device) -> None:
    draws = Draws.of(3, "model", "tensor")
    for start, count in ((0, 100_000), (1 << 33, 1000)):
        assert torch.equal(draws.numbers(start, count, device).cpu(), draws.numbers(start, count, torch.device("cpu")))


def test_an_export_of_a_device_is_that_of_a_cpu(device: torch.device, tiny: Tiny, tmp_path: Path) -> None:
    sources = {str(seed): Checkpoint.open(tiny("llama", seed=seed), str(seed)) for seed in (1, 2)}
    models = [{"model": name, "parameters": {"weight": 0.3}} for name in sources]
    recipe = Recipe.model_validate({"merge_method": "linear", "models": models})
    with in_torch(device):
        export_checkpoint(recipe, sources, tmp_path / "there", mask_seed=0, device=device)
    export_checkpoint(recipe, sources, tmp_path / "here", mask_seed=0)
    files = {path.name for path in (tmp_path / "here").iterdir()}
    assert {path.name for path in (tmp_path / "there").iterdir()} == files
    assert all((tmp_path / "there" / f).read_bytes() == (tmp_path / "here" / f).read_bytes() for f in files)


def test_memory_of_a_device_that_does_not_suffice_is_told_from_other_errors(device: torch.device) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8, device=device)
    assert out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2, device=device) @ torch.ones(3, device=device)
    assert not out_of_memory(caught.value)
