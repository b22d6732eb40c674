"""Scaled layer paths, for families whose scales are folded by multiplying, against mergekit on the same recipe.

The tensors are compared, and not the config: mergekit keeps what the base_model's says of each of its layers.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from closeness import steps
from evomerge_worker.merge import Merger, plan_merge
from evomerge_worker.prepare.flow import flow_of
from evomerge_worker.shards import Checkpoint
from flow_recipes import folded
from merge_corpus import rewritten, with_buffers, with_fused_experts
from oracle import Oracle
from tiny_models import Tiny

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with tied head": ("llama-tied", {}),
    "mistral": ("mistral", {}),
    "mixtral": ("mixtral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "phi3": ("phi3", {}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt2": ("gpt2", {}),
    "olmo2": ("llama", {"model_type": "olmo2"}),
}
PATH = ((0, 0), (0, 1), (1, 1), (1, 0), (0, 2), (1, 2), (1, 2), (0, 1), (1, 3), (0, 3))
OF_FOUR = ((0, 0), (1, 1), (1, 1), (0, 3))
"""For families whose config lists its layers: mergekit writes none for another number of them."""
SCALES = (0.83, 1.21, 0.57, 1.49, 0.93, 1.17, 0.71, 1.33, 1.07, 0.66)


@pytest.mark.parametrize("name", MODELS)
def test_a_scaled_path_has_the_tensors_that_mergekit_gives_it(
    oracle: Oracle, tiny: Tiny, tmp_path: Path, name: str
) -> None:
    family, config = MODELS[name]
    folders = [_published(tiny(family, seed=seed, **config), family) for seed in (1, 2)]
    sources = {str(folder): Checkpoint.open(folder, str(folder)) for folder in folders}
    checkpoint = sources[str(folders[0])]
    flow = flow_of(checkpoint.config["model_type"], checkpoint.layout, dict.fromkeys(sources, 4))
    assert flow is not None
    numbers = OF_FOUR if family.startswith("qwen") else PATH
    path = [(str(folders[model]), layer) for model, layer in numbers]
    recipe = folded(flow, path, SCALES[: len(path)], dtype="float32", out_dtype="bfloat16")
    oracle(ask="merge", recipe=recipe.plain(), out=str(tmp_path / "out"), masks=None)
    theirs = Checkpoint.open(tmp_path / "out", "theirs")
    ours = with_fused_experts(dict(Merger(sources, 0).merged(plan_merge(recipe, sources))))
    assert sorted(ours) == theirs.names
    for tensor, other in ((ours[name], theirs.tensor(name)) for name in theirs.names):
        assert tensor.dtype in (other.dtype, torch.bool)  # masks, which mergekit takes for weights
        assert bool(((tensor.double() - other.double()).abs() <= steps(torch.bfloat16, other)).all())


def _published(folder: Path, family: str) -> Path:
    """The model as those were published for whose buffers mergekit asks."""
    return rewritten(folder, with_buffers) if family == "gpt_neox" else folder
