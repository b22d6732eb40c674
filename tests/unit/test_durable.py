"""Files that are there whole or not at all, and a disk that does not take them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge_worker.durable import write_durably
from evomerge_worker.errors import StorageError

LIMITED = """
import resource, sys
from pathlib import Path
from evomerge_worker.durable import write_durably
from evomerge_worker.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_durably(Path(sys.argv[1]), b"x" * 2000)
except StorageError as error:
    print(error.reason, error)
"""


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    write_durably(path, b"one")
    write_durably(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o644)])
def test_others_may_read_as_far_as_the_umask_lets_them(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_durably(tmp_path / "report.json", b"{}")
    finally:
        os.umask(before)
    assert (tmp_path / "report.json").stat().st_mode & 0o777 == mode


def test_a_disk_that_takes_no_more_is_a_disturbance_and_leaves_the_earlier_file(tmp_path: Path) -> None:
    """A process whose files may not grow beyond 1,000 bytes stands for a full disk."""
    path = tmp_path / "report.json"
    path.write_bytes(b"earlier")
    ran = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True, check=True)
    assert ran.stdout == f"TryAgain {path} could not be written: File too large\n"
    assert path.read_bytes() == b"earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"file/report\.json could not be written: "):
        write_durably(tmp_path / "file" / "report.json", b"{}")
