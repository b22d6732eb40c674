"""The number formats of safetensors that a merge can use, and those it refuses in words."""

import torch

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Weights: these are merged."""

BUFFERS = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
"""Masks, position numbers, counters: these are copied."""

NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
BY_NAME = {name: dtype for dtype, name in NAMES.items()}
"""The dtypes a recipe may name."""


def refusal(tensor: str, code: str, dimensions: int) -> str | None:
    """Why a tensor of the safetensors format `code` cannot take part in a merge; None if it can."""
    if code in FLOATS:
        return None
    if code not in BUFFERS:
        return f"is of type {code}; only float32, float16 and bfloat16 weights can be merged: convert the model first"
    if code != "BOOL" and dimensions >= 2 and tensor.endswith("weight"):
        return f"is of type {code}, so the model is quantised: use its unquantised weights"
    return None
