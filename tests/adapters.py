"""LoRA adapters for tests, written as PEFT writes them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from evomerge_worker.shards import Checkpoint

PREFIX = "base_model.model."


def write_adapter(
    folder: Path,
    model: Checkpoint,
    modules: Iterable[str] = ("model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"),
    *,
    rank: int = 4,
    turned: bool = False,
    extra: dict[str, torch.Tensor] | None = None,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write an adapter with random pairs for `modules` of `model` to `folder`; return `folder`.

    `turned`: weights are [in, out]. `extra` holds tensors beside the pairs, `config` other keys of the config.
    """
    chance = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in modules:
        rows, columns = reversed(model.shape(f"{module}.weight")) if turned else model.shape(f"{module}.weight")
        tensors[f"{PREFIX}{module}.lora_A.weight"] = torch.randn(rank, columns, generator=chance)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = torch.randn(rows, rank, generator=chance) / 10
    write_files(folder, tensors | (extra or {}), {"r": rank, "lora_alpha": 2 * rank} | config)
    return folder


def write_files(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """Write the two files of an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | config))
