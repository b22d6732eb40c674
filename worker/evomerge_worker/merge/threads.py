"""Threads among which tensors are shared out, so that results do not depend on how many there are."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Threads:
    """`map` calls a function on so many threads; one is the caller's own."""

    number: int
    map: Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]]


ALONE = Threads(1, map)


@contextmanager
def threads(number: int) -> Iterator[Threads]:
    """So many threads, as `pool` has them."""
    if number == 1:
        yield ALONE
        return
    with pool(number) as workers:
        yield Threads(number, workers.map)


def pool(number: int) -> ThreadPoolExecutor:
    """Threads in which torch uses no others. Gradients are off in each: that is a thread's own affair."""

    def begin() -> None:
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)

    return ThreadPoolExecutor(number, initializer=begin)
