"""The cache: what was downloaded is there whole or not at all, whoever asks and whoever dies."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from evomerge_worker.errors import InputError
from evomerge_worker.store import default_cache
from evomerge_worker.store.cache import cached_folder


def fill_once(root: Path, start: Any, fills: Path) -> None:
    def fill(folder: Path) -> None:
        with fills.open("a") as log:
            log.write("filled\n")
        (folder / "weights").write_bytes(bytes(1_000_000))

    start.wait()
    folder = cached_folder(root, "key", {"weights": 1_000_000}, fill)
    assert (folder / "weights").stat().st_size == 1_000_000


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


def test_a_download_that_was_killed_is_begun_again(tmp_path: Path) -> None:
    def die(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    def fill(folder: Path) -> None:
        (folder / "weights").write_bytes(b"full")

    child = multiprocessing.get_context("fork").Process(
        target=cached_folder, args=(tmp_path, "key", {"weights": 4}, die)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    folder = cached_folder(tmp_path, "key", {"weights": 4}, fill)
    assert (folder / "weights").read_bytes() == b"full"


def test_a_cached_file_of_the_wrong_size_is_fetched_again(tmp_path: Path) -> None:
    def fill(part: Path) -> None:
        (part / "weights").write_bytes(b"whole")

    folder = cached_folder(tmp_path, "key", {"weights": 5}, fill)
    (folder / "weights").write_bytes(b"who")
    again = cached_folder(tmp_path, "key", {"weights": 5}, fill)
    assert (again / "weights").read_bytes() == b"whole"


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="set EVOMERGE_CACHE to a folder that can be written"):
        cached_folder(tmp_path / "file", "key", {"weights": 5}, lambda part: None)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", "/somewhere/else")
    assert default_cache() == Path("/somewhere/else")
    monkeypatch.delenv("EVOMERGE_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_cache() == Path("/home/someone/.cache/evomerge")
