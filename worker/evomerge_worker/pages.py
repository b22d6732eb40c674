"""Memory in huge pages, of which there is less to look up and to make ready than of small ones, and in files."""

import math
import mmap
import os
from contextlib import suppress
from tempfile import TemporaryFile

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


def in_file(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor to be filled, in a temporary file without a name: the system writes it out when memory runs short.

    What is small, and what the folder for temporary files has no room for, is in memory.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < HUGE_PAGE or not hasattr(os, "posix_fallocate"):
        return torch.empty(shape, dtype=dtype)
    try:
        with TemporaryFile(prefix="evomerge-") as file:
            os.posix_fallocate(file.fileno(), 0, size)
            area = mmap.mmap(file.fileno(), size)
    except OSError:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(area, dtype=dtype).view(shape)
