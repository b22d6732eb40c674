"""Memory in huge pages, and in files."""

import tempfile
from pathlib import Path

import pytest
import torch

from evomerge_worker.merge.rows import rearranged, rows_by_token
from evomerge_worker.pages import HUGE_PAGE, huge_pages, in_file

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


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells how much memory a process has")
def test_rows_in_another_order_take_no_memory_that_the_system_cannot_take_back() -> None:
    count, width = 4096, 4096
    tensor = torch.rand(count, width)
    rows = rows_by_token({str(i): i for i in range(count)}, count, {"a": {str(i): count - 1 - i for i in range(count)}},
                         ("a",), None)  # fmt: skip
    before = _anonymous()
    result = rearranged(rows, "a", lambda _: tensor)
    assert _anonymous() - before < result.numel() * result.itemsize / 4
    assert torch.equal(result, tensor.flip(0))


def test_without_room_for_a_file_it_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert in_file((1024, 1024), torch.float32).fill_(7).eq(7).all()


def _anonymous() -> int:
    """Bytes of memory that is no file's."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) << 10
