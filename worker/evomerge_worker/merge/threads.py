"""Threads among which whole tensors are shared out, so that results do not depend on how many there are."""

from concurrent.futures import ThreadPoolExecutor

import torch


def pool(threads: int) -> ThreadPoolExecutor:
    """Threads in which torch uses no others. Gradients are off in each: that is a thread's own affair."""

    def begin() -> None:
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)

    return ThreadPoolExecutor(threads, initializer=begin)
