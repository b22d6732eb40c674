"""The cache: what was pulled is there whole or not at all, whoever asks and whoever dies; what is in use stays."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from evomerge_worker.digests import file_digest
from evomerge_worker.errors import StorageError
from evomerge_worker.store import default_cache
from evomerge_worker.store.cache import cached_folder, scratch_folder
from evomerge_worker.store.locks import unshare
from evomerge_worker.store.stamp import sha256_of

KEY, OTHER, THIRD = (digit * 64 for digit in "123")
SIZE = 1_000_000

HOLD = """
import sys
from pathlib import Path
from evomerge_worker.store.cache import cached_folder
cached_folder(Path(sys.argv[1]), sys.argv[2], lambda: 0, lambda part, whole: None)
print("held", flush=True)
sys.stdin.read()
"""


def filled(root: Path, key: str, content: bytes = bytes(SIZE)) -> Path:
    """The entry `key` with one file; this process lets go of it again."""
    folder = cached_folder(root, key, lambda: len(content), lambda part, _: write(part, content))
    unshare(root / f"{key}.use")
    return folder


def write(part: Path, content: bytes) -> None:
    (part / "weights").write_bytes(content)


def never(part: Path, _: object) -> None:
    raise AssertionError(f"{part} was to be filled")


@contextmanager
def in_use(root: Path, key: str) -> Iterator[subprocess.Popen[str]]:
    """Another process uses the entry."""
    command = [sys.executable, "-c", HOLD, str(root), key]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def fill_once(root: Path, start: Any, fills: Path) -> None:
    def fill(folder: Path, _: object) -> None:
        with fills.open("a") as log:
            log.write("filled\n")
        write(folder, bytes(SIZE))

    start.wait()
    folder = cached_folder(root, KEY, lambda: SIZE, fill)
    assert (folder / "weights").stat().st_size == SIZE


def test_of_processes_that_ask_at_once_one_downloads(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    children = [
        context.Process(target=fill_once, args=(tmp_path / "cache", start, tmp_path / "fills")) for _ in range(4)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0, 0]
    assert (tmp_path / "fills").read_text() == "filled\n"


def test_a_download_that_was_killed_leaves_what_it_had_to_the_next(tmp_path: Path) -> None:
    def die(part: Path, _: object) -> None:
        write(part, b"half")
        (part / ".notes").write_bytes(b"how far it went")
        os.kill(os.getpid(), signal.SIGKILL)

    def go_on(part: Path, _: object) -> None:
        assert (part / "weights").read_bytes() == b"half"
        assert (part / ".notes").read_bytes() == b"how far it went"
        write(part, b"full")

    child = multiprocessing.get_context("fork").Process(target=cached_folder, args=(tmp_path, KEY, lambda: 4, die))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    folder = cached_folder(tmp_path, KEY, lambda: 4, go_on)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {"weights": b"full"}


def shorten(file: Path) -> None:
    file.write_bytes(b"who")


def rewrite(file: Path) -> None:
    file.write_bytes(b"other")  # of the same size


def remove(file: Path) -> None:
    file.unlink()


def forget(file: Path) -> None:
    file.parent.with_name(f"{KEY}.stamp").write_text("torn")


@pytest.mark.parametrize("damage", [shorten, rewrite, remove, forget])
def test_a_damaged_entry_is_filled_again(damage: Any, tmp_path: Path) -> None:
    folder = filled(tmp_path, KEY, b"whole")
    damage(folder / "weights")
    assert (filled(tmp_path, KEY, b"whole") / "weights").read_bytes() == b"whole"
    cached_folder(tmp_path, KEY, lambda: 5, never)


def test_a_cached_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = filled(tmp_path, KEY, b"whole") / "weights"
    hashed = file_digest(file)
    monkeypatch.setattr("evomerge_worker.store.stamp._hash", lambda _: "read again")
    assert f"sha256:{sha256_of(file)}" == hashed
    file.write_bytes(b"other")
    assert sha256_of(file) == "read again"


# room


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE_BYTES", str(2 * SIZE + SIZE // 2))


def used(root: Path, key: str, seconds_ago: int) -> None:
    then = time.time() - seconds_ago
    os.utime(root / f"{key}.stamp", (then, then))


def test_what_was_used_longest_ago_makes_room(limited: None, tmp_path: Path) -> None:
    old, older = filled(tmp_path, KEY), filled(tmp_path, OTHER)
    used(tmp_path, KEY, 10)
    used(tmp_path, OTHER, 20)
    new = filled(tmp_path, THIRD)
    assert [folder.exists() for folder in (old, older, new)] == [True, False, True]


def test_use_counts_not_age(limited: None, tmp_path: Path) -> None:
    first, second = filled(tmp_path, KEY), filled(tmp_path, OTHER)
    used(tmp_path, KEY, 20)
    used(tmp_path, OTHER, 10)
    cached_folder(tmp_path, KEY, lambda: SIZE, never)
    unshare(tmp_path / f"{KEY}.use")
    filled(tmp_path, THIRD)
    assert [folder.exists() for folder in (first, second)] == [True, False]


def test_what_is_in_use_is_never_evicted(limited: None, tmp_path: Path) -> None:
    older, old = filled(tmp_path, KEY), filled(tmp_path, OTHER)
    with in_use(tmp_path, KEY):
        used(tmp_path, KEY, 20)
        filled(tmp_path, THIRD)
        assert [folder.exists() for folder in (older, old)] == [True, False]
        with in_use(tmp_path, THIRD), pytest.raises(StorageError, match="2,000,000 bytes of it are in use") as raised:
            filled(tmp_path, OTHER)
        assert "may hold 2,500,000 bytes (EVOMERGE_CACHE_BYTES)" in str(raised.value)
        assert [problem.path for problem in raised.value.problems] == ["cache"]


def test_the_lock_of_a_killed_reader_holds_nothing(limited: None, tmp_path: Path) -> None:
    folder = filled(tmp_path, KEY)
    filled(tmp_path, OTHER)
    with in_use(tmp_path, KEY) as reader:
        reader.kill()
        reader.wait()
        used(tmp_path, KEY, 20)
        filled(tmp_path, THIRD)
    assert not folder.exists()


def test_half_a_download_that_nobody_goes_on_with_makes_room(limited: None, tmp_path: Path) -> None:
    def fail(part: Path, _: object) -> None:
        write(part, bytes(SIZE // 2))
        raise StorageError("the server is away")

    for key in (KEY, OTHER):
        with pytest.raises(StorageError):
            cached_folder(tmp_path, key, lambda: SIZE, fail)
        unshare(tmp_path / f"{key}.use")
        os.utime(tmp_path / f"{key}.lock", (0, 0))
    filled(tmp_path, THIRD)
    assert sum(path.name.endswith(".part") for path in tmp_path.iterdir()) == 1


def test_what_can_never_fit_is_told(limited: None, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="3,000,000 more are needed; give it more room"):
        cached_folder(tmp_path, KEY, lambda: 3 * SIZE, never)


def test_a_volume_without_room_is_told_before_anything_is_pulled(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"has [0-9,]+ bytes free, and 1,000,000,000,000,000 are needed"):
        cached_folder(tmp_path, KEY, lambda: 10**15, never)


def test_a_limit_that_is_no_number_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE_BYTES", "10Gi")
    with pytest.raises(StorageError, match="EVOMERGE_CACHE_BYTES is '10Gi'; it must be a whole number of bytes"):
        cached_folder(tmp_path, KEY, lambda: SIZE, never)


def test_scratch_space_counts_and_goes(limited: None, tmp_path: Path) -> None:
    old = filled(tmp_path, KEY)
    with scratch_folder(tmp_path, 2 * SIZE) as scratch:
        assert scratch.is_dir()
        assert not old.exists()
        with pytest.raises(StorageError, match="2,000,000 bytes of it are in use"):
            filled(tmp_path, OTHER)
    assert not list(tmp_path.glob("scratch-*"))


def test_scratch_space_of_a_killed_process_is_cleared_by_the_next(tmp_path: Path) -> None:
    def die() -> None:
        with scratch_folder(tmp_path, SIZE) as scratch:
            write(scratch, b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    child = multiprocessing.get_context("fork").Process(target=die)
    child.start()
    child.join()
    assert len(list(tmp_path.glob("scratch-*.part/weights"))) == 1
    with scratch_folder(tmp_path, SIZE) as scratch:
        assert list(tmp_path.glob("scratch-*.part")) == [scratch]


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="see that EVOMERGE_CACHE names a folder that can be written"):
        cached_folder(tmp_path / "file", KEY, lambda: 5, never)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", "/somewhere/else")
    assert default_cache() == Path("/somewhere/else")
    monkeypatch.delenv("EVOMERGE_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_cache() == Path("/home/someone/.cache/evomerge")
