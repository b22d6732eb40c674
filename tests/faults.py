"""Tiny checkpoints with one fault each, made as the tools that people use would leave them behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from prepare_tasks import changed_config, changed_weights

Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], None]
FIRST = "model.layers.0.mlp.down_proj"
"""The first linear module of a tiny Llama, in the order of names."""


def _modules(tensors: Tensors) -> list[str]:
    return [name.removesuffix(".weight") for name in sorted(tensors) if name.endswith("_proj.weight")]


def fp8(tensors: Tensors) -> None:
    """As DeepSeek's and transformers' fine-grained FP8."""
    for module in _modules(tensors):
        tensors[f"{module}.weight"] = tensors[f"{module}.weight"].to(torch.float8_e4m3fn)
        tensors[f"{module}.weight_scale_inv"] = torch.ones(1, 1)


def gptq(tensors: Tensors) -> None:
    """As GPTQ packs four bits: eight weights in an int32."""
    for module in _modules(tensors):
        rows, columns = tensors.pop(f"{module}.weight").shape
        tensors[f"{module}.qweight"] = torch.zeros(columns // 8, rows, dtype=torch.int32)
        tensors[f"{module}.qzeros"] = torch.zeros(1, rows // 8, dtype=torch.int32)
        tensors[f"{module}.scales"] = torch.ones(1, rows, dtype=torch.float16)
        tensors[f"{module}.g_idx"] = torch.zeros(columns, dtype=torch.int32)


def awq(tensors: Tensors) -> None:
    """As AWQ packs them: the other way round, and without g_idx."""
    for module in _modules(tensors):
        rows, columns = tensors.pop(f"{module}.weight").shape
        tensors[f"{module}.qweight"] = torch.zeros(columns, rows // 8, dtype=torch.int32)
        tensors[f"{module}.qzeros"] = torch.zeros(1, rows // 8, dtype=torch.int32)
        tensors[f"{module}.scales"] = torch.ones(1, rows, dtype=torch.float16)


def nf4(tensors: Tensors) -> None:
    """As bitsandbytes writes four bits: bytes in a column, and what undoes it beside them."""
    for module in _modules(tensors):
        size = tensors[f"{module}.weight"].numel()
        tensors[f"{module}.weight"] = torch.zeros(size // 2, 1, dtype=torch.uint8)
        tensors[f"{module}.weight.absmax"] = torch.zeros(size // 64, dtype=torch.uint8)
        tensors[f"{module}.weight.quant_map"] = torch.zeros(16)
        tensors[f"{module}.weight.quant_state.bitsandbytes__nf4"] = torch.zeros(80, dtype=torch.uint8)


def int8(tensors: Tensors) -> None:
    """As bitsandbytes writes eight bits."""
    for module in _modules(tensors):
        weight = tensors[f"{module}.weight"]
        tensors[f"{module}.weight"] = weight.to(torch.int8)
        tensors[f"{module}.SCB"] = torch.ones(weight.shape[0])


def packed(tensors: Tensors) -> None:
    """As compressed-tensors packs four bits."""
    for module in _modules(tensors):
        rows, columns = tensors.pop(f"{module}.weight").shape
        tensors[f"{module}.weight_packed"] = torch.zeros(rows, columns // 8, dtype=torch.int32)
        tensors[f"{module}.weight_scale"] = torch.ones(rows, 1, dtype=torch.bfloat16)
        tensors[f"{module}.weight_shape"] = torch.tensor([rows, columns])


def mxfp4(tensors: Tensors) -> None:
    """As MXFP4 keeps experts: blocks of four bits with a scale each."""
    for module in _modules(tensors):
        rows, columns = tensors.pop(f"{module}.weight").shape
        tensors[f"{module}_blocks"] = torch.zeros(rows, columns // 32, 16, dtype=torch.uint8)
        tensors[f"{module}_scales"] = torch.zeros(rows, columns // 32, dtype=torch.uint8)


def hqq(tensors: Tensors) -> None:
    """As HQQ packs four bits: bytes, and what undoes it beside them."""
    for module in _modules(tensors):
        size = tensors.pop(f"{module}.weight").numel()
        tensors[f"{module}.W_q"] = torch.zeros(size // 128, 64, dtype=torch.uint8)
        tensors[f"{module}.scale"] = torch.ones(size // 64, 1)
        tensors[f"{module}.zero"] = torch.ones(size // 64, 1)


def torchao(tensors: Tensors) -> None:
    """As torchao writes eight bits: the parts of its tensors, flattened."""
    for module in _modules(tensors):
        weight = tensors.pop(f"{module}.weight")
        tensors[f"{module}._weight_qdata"] = weight.to(torch.int8)
        tensors[f"{module}._weight_scale"] = torch.ones(weight.shape[0], 1)


QUANTISED: dict[str, Change] = {
    "fp8": fp8,
    "gptq": gptq,
    "awq": awq,
    "bitsandbytes": nf4,
    "bitsandbytes-int8": int8,
    "compressed-tensors": packed,
    "mxfp4": mxfp4,
    "hqq": hqq,
    "torchao": torchao,
}
"""By the quant_method that config.json gives."""


def quantised(source: Path, folder: Path, method: str, *, told: bool = True) -> Path:
    """A copy of a model, quantised; `told` in its config.json too."""
    changed_weights(source, folder, QUANTISED[method])
    if told:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": method.removesuffix("-int8")}
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def changed(source: Path, folder: Path, change: Change, **config: Any) -> Path:
    """A copy of a model with other tensors and other values in its config.json."""
    between = changed_config(source, folder.with_name(f"{folder.name}-config"), **config)
    changed_weights(between, folder, change)
    shutil.rmtree(between)
    return folder


def widen(tensors: Tensors) -> None:
    """All weights in float64."""
    for name, tensor in tensors.items():
        tensors[name] = tensor.double()


def whole_head(tensors: Tensors) -> None:
    """A head of whole numbers."""
    tensors["lm_head.weight"] = tensors["lm_head.weight"].long()


def whole_norm(tensors: Tensors) -> None:
    """A norm of whole numbers: it has one dimension, as buffers do."""
    tensors["model.norm.weight"] = tensors["model.norm.weight"].long()


def cut_head(tensors: Tensors) -> None:
    """A head for fewer tokens."""
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:50].clone()


def drop_up(tensors: Tensors) -> None:
    """Without one matrix in each layer."""
    for layer in range(4):
        tensors.pop(f"model.layers.{layer}.mlp.up_proj.weight", None)


def add_biases(tensors: Tensors) -> None:
    """With a bias for the queries and one for the keys in each layer."""
    for layer in range(4):
        tensors[f"model.layers.{layer}.self_attn.q_proj.bias"] = torch.zeros(32)
        tensors[f"model.layers.{layer}.self_attn.k_proj.bias"] = torch.zeros(16)


def damage(tensors: Tensors) -> None:
    """One weight that is no number."""
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
