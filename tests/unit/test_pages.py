"""Memory in huge pages."""

from pathlib import Path

import pytest

from evomerge_worker.pages import HUGE_PAGE, huge_pages

STATUS = Path("/proc/self/status")


@pytest.mark.parametrize("size", [0, 1, HUGE_PAGE - 1, HUGE_PAGE, 3 * HUGE_PAGE + 5])
def test_it_begins_with_a_huge_page_and_is_zero_and_can_be_written_to(size: int) -> None:
    memory = huge_pages(size)
    assert memory.numel() >= size
    assert size == 0 or memory.data_ptr() % HUGE_PAGE == 0
    assert not memory[:size].any()
    assert memory[:size].fill_(7).eq(7).all()


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells how much memory a process has")
def test_no_memory_is_taken_for_nothing() -> None:
    """The last page is not filled: it would be taken whole."""
    size, number = 3 * HUGE_PAGE // 2, 40
    before = _anonymous()
    held = [huge_pages(size)[:size].fill_(1) for _ in range(number)]
    assert size * number <= _anonymous() - before < 1.1 * size * number
    assert len(held) == number


def _anonymous() -> int:
    """Bytes of memory that is no file's."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) << 10
