"""Memory in huge pages, where the system gives them: there is less to look up and to make ready than in small ones."""

import mmap
from contextlib import suppress

import torch
from torch import Tensor

HUGE_PAGE = 1 << 21  # bytes


def huge_pages(size: int) -> Tensor:
    """At least so many bytes, zero, from the start of a huge page; they live as long as a view of them.

    What does not fill the last page lies in small ones, so that no memory is taken for nothing.
    """
    area = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = torch.frombuffer(area, dtype=torch.uint8)
    start, filled = -whole.data_ptr() % HUGE_PAGE, size // HUGE_PAGE * HUGE_PAGE
    if filled and hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        with suppress(OSError):  # a kernel without them
            area.madvise(mmap.MADV_HUGEPAGE, start, filled)
    return whole[start:]
