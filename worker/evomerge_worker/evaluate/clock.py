"""How long a model's forward takes within other work; for benches, never in the hot path."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class ForwardTime:
    """Seconds spent in a model's forward, and its calls."""

    seconds: float = 0.0
    calls: int = 0


@contextmanager
def forward_time(model: torch.nn.Module) -> Iterator[ForwardTime]:
    """Add up the forwards of `model` while the context lasts; a GPU is waited for before and after each."""
    total = ForwardTime()
    begun = 0.0

    def begin(*_: Any) -> None:
        nonlocal begun
        _wait(model)
        begun = time.perf_counter()

    def end(*_: Any) -> None:
        _wait(model)
        total.seconds += time.perf_counter() - begun
        total.calls += 1

    hooks = [model.register_forward_pre_hook(begin), model.register_forward_hook(end)]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()


def _wait(model: torch.nn.Module) -> None:
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
