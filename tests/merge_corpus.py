"""The corpus of recipes that is merged by mergekit and by us: parity/corpus/*.yaml, a mapping of names to entries.

An entry is a mergekit configuration over the models a, b, c and base, and two keys more: the `family` of these models
(llama if none is named) and the dtype that they are stored in, `sources` (bfloat16). It is computed in float32 and
comes out in bfloat16 unless it says otherwise (`out_dtype: null`: in what it is computed in).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from evomerge_contract.recipe import Recipe
from evomerge_worker.shards import Checkpoint
from tiny_models import Tiny

_FOLDER = Path(__file__).parent / "parity" / "corpus"
_SEEDS = {"base": 0, "a": 1, "b": 2, "c": 3}


@dataclass(frozen=True)
class Entry:
    """A recipe of the corpus, models by their letters."""

    name: str
    family: str
    sources: str
    recipe: dict[str, Any]

    def models(self) -> list[str]:
        """Those that it names."""
        return [name for name in _SEEDS if name in (self.recipe.get("base_model"), *(m["model"] for m in self._uses()))]

    def checkpoints(self, tiny: Tiny) -> dict[str, Checkpoint]:
        """Its models by their paths, which is what both sides call them."""
        folders = [tiny(self.family, seed=_SEEDS[name], dtype=self.sources) for name in self.models()]
        if self.family in _REWRITTEN:
            folders = [rewritten(folder, _REWRITTEN[self.family]) for folder in folders]
        return {str(folder): Checkpoint.open(folder, str(folder)) for folder in folders}

    def over(self, checkpoints: dict[str, Checkpoint]) -> dict[str, Any]:
        """The recipe with every model named by its path."""
        paths = dict(zip(self.models(), checkpoints, strict=True))
        return _renamed(self.recipe, paths)

    def _uses(self) -> Iterator[dict[str, Any]]:
        yield from self.recipe.get("models", [])
        for one in self.recipe.get("slices", []):
            yield from one["sources"]

    def settings(self) -> Iterator[dict[str, Any]]:
        """The parameters of every scope."""
        for scope in (self.recipe, *self._uses(), *self.recipe.get("slices", [])):
            yield scope.get("parameters", {})


def _renamed(part: Any, paths: dict[str, str]) -> Any:
    if isinstance(part, list):
        return [_renamed(item, paths) for item in part]
    if isinstance(part, dict):
        return {
            key: paths[value] if key in ("model", "base_model") else _renamed(value, paths)
            for key, value in part.items()
        }
    return part


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """A copy of the checkpoint with other tensors."""
    copy = folder.with_name(f"{folder.name}-rewritten")
    if not copy.exists():
        copytree(folder, copy)
        save_file(
            change(load_file(folder / "model.safetensors")), copy / "model.safetensors", metadata={"format": "pt"}
        )
    return copy


def with_buffers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A GPT-NeoX as it was published, with the buffers that mergekit asks for and transformers no longer writes."""
    buffers = {}
    for name, weight in tensors.items():
        if name.endswith("attention.dense.weight"):
            prefix = name.removesuffix("dense.weight")
            buffers[f"{prefix}bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
            buffers[f"{prefix}masked_bias"] = torch.tensor(-1e9, dtype=weight.dtype)
            buffers[f"{prefix}rotary_emb.inv_freq"] = torch.tensor([1.0, 0.1], dtype=weight.dtype)
    return tensors | buffers


def with_fused_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Mixtral as mergekit writes it: each layer's experts in two tensors, which it makes of others before it merges.

    So both sides see the same tensors. Given one tensor a matrix, as published, we take the norms and ranks of each.
    """
    fused = {name: tensor for name, tensor in tensors.items() if ".block_sparse_moe." not in name}
    for name, gate in tensors.items():
        if name.endswith(".block_sparse_moe.gate.weight"):
            old, new = (f"{name.split('.block_sparse_moe.')[0]}.{part}." for part in ("block_sparse_moe", "mlp"))
            experts = [
                [tensors[f"{old}experts.{i}.{part}.weight"] for part in ("w1", "w3", "w2")] for i in range(len(gate))
            ]
            fused[f"{new}gate.weight"] = gate
            fused[f"{new}experts.gate_up_proj"] = torch.stack([torch.cat([w1, w3]) for w1, w3, _ in experts])
            fused[f"{new}experts.down_proj"] = torch.stack([w2 for _, _, w2 in experts])
    return fused


_REWRITTEN = {"gpt_neox": with_buffers, "mixtral": with_fused_experts}


def _entry(name: str, written: dict[str, Any]) -> Entry:
    family, sources = (written.pop(key, usual) for key, usual in (("family", "llama"), ("sources", "bfloat16")))
    recipe = {"dtype": "float32", "out_dtype": "bfloat16"} | written
    return Entry(name, family, sources, {key: value for key, value in recipe.items() if value is not None})


def _read() -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for path in sorted(_FOLDER.glob("*.yaml")):
        for name, written in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            if name in entries:
                raise ValueError(f"{path.name}: {name} is there already")
            entries[name] = _entry(name, written)
            Recipe.model_validate(entries[name].recipe)
    return entries


CORPUS = _read()
