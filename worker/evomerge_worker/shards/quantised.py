"""Telling a quantised checkpoint, by its config and by what its tensors are called and made of.

A merge would read packed numbers as weights. Some quantised models say so in config.json, some only in their tensors,
and in some config.json the word was left though the weights are whole again: both are looked at.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_SETTINGS = ("quantization_config", "compression_config")
_PARTS = re.compile(
    r"\.(qweight|qzeros|g_idx"  # GPTQ, AWQ
    r"|weight_packed|weight_scale|weight_scale_inv|weight_zero_point|weight_global_scale"  # compressed-tensors, FP8
    r"|absmax|nested_absmax|quant_map|nested_quant_map|quant_state\..*|SCB|weight_format"  # bitsandbytes
    r"|W_q"  # HQQ
    r"|_weight_(qdata|scale|zero_point))$"  # torchao
)
_BLOCKS = re.compile(r"_(blocks|scales)$")  # MXFP4
_NARROW = ("F4", "F6_", "F8_")
"""How the codes of formats too narrow for weights as they were trained begin."""


def looks_quantised(tensor: str, code: str, dimensions: int) -> bool:
    """Whether a tensor of the safetensors format `code` is a part of quantised weights."""
    if code.startswith(_NARROW) or _PARTS.search(tensor):
        return True
    whole = code[0] in "IU"
    return whole and dimensions >= 2 and (tensor.endswith("weight") or bool(_BLOCKS.search(tensor)))


def refusal(config: Mapping[str, Any], tensors: Sequence[str]) -> str | None:
    """Why a checkpoint cannot be merged whose `tensors` (told as a person finds them) look quantised; None if it can.

    `config` is its config.json.
    """
    key, method = _method(config)
    if tensors:
        told = f" (quant_method {method} in config.json)" if method else ""
        more = f" and {len(tensors) - 1} more tensors like it" if len(tensors) > 1 else ""
        return f"is quantised{told}: {tensors[0]}{more}; use its unquantised weights"
    if key is None:
        return None
    return (
        f"config.json has {key} (quant_method {method or 'not given'}), so the model is quantised: use its unquantised "
        "weights; if these are they, remove that key"
    )


def _method(config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The key of config.json that speaks of quantisation, the text model's own config included, and the method."""
    for part in (config, config.get("text_config")):
        for key in _SETTINGS:
            if isinstance(part, Mapping) and part.get(key) is not None:
                settings = part[key]
                method = settings.get("quant_method") if isinstance(settings, Mapping) else None
                return key, None if method is None else str(method)
    return None, None
