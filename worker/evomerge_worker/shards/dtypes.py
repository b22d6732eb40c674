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

REFUSED = {
    "F64": torch.float64,
    "C64": torch.complex64,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
}
"""What no merge takes; the shapes of such tensors can still be compared."""

NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
BY_NAME = {name: dtype for dtype, name in NAMES.items()}
"""The dtypes a recipe may name."""


def refusal(code: str) -> str | None:
    """Why a tensor of the safetensors format `code` cannot take part in a merge; None if it can."""
    if code in FLOATS or code in BUFFERS:
        return None
    return f"is of type {code}; only float32, float16 and bfloat16 weights can be merged: convert the model first"
