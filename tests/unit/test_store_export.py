"""Exports and reports in a real S3 server: whole or recognisable as broken off, and nothing else is ever touched."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evomerge_contract.manifest import S3
from evomerge_contract.report import EXPORT_MARK
from evomerge_worker.errors import InputError, StorageError
from evomerge_worker.store import s3
from evomerge_worker.store.s3_export import BEGUN, ExportManifest, earlier_export, put_export
from s3 import S3Server, s3_server

__all__ = ["s3_server"]

TASK, OTHER = ("sha256:" + digit * 64 for digit in "12")
LARGE = 70 << 20  # bytes: three parts
PUT = """
import sys
from pathlib import Path
from evomerge_contract.manifest import S3
from evomerge_worker.store import s3, s3_export
s3_export.put_export(s3.connect(S3(endpoint=sys.argv[1])), sys.argv[2], sys.argv[3], Path(sys.argv[4]))
"""


class Place:
    """A prefix of the test's own, with a client of its own."""

    def __init__(self, server: S3Server, name: str) -> None:
        self.server, self.name = server, name
        self.uri = f"s3://exports/{name}/best"
        self.client = s3.connect(S3(endpoint=server.endpoint))
        self.theirs = server.client()
        if "exports" not in {b["Name"] for b in self.theirs.list_buckets()["Buckets"]}:
            self.theirs.create_bucket(Bucket="exports")

    def put(self, task: str, folder: Path) -> dict[str, str]:
        return put_export(self.client, self.uri, task, folder)

    def earlier(self, task: str) -> dict[str, str] | None:
        return earlier_export(self.client, self.uri, task)

    def key(self, name: str) -> str:
        return f"{self.name}/best/{name}"

    def write(self, name: str, content: bytes) -> None:
        self.theirs.put_object(Bucket="exports", Key=self.key(name), Body=content)

    def contents(self) -> dict[str, bytes]:
        found = self.theirs.list_objects_v2(Bucket="exports", Prefix=self.key("")).get("Contents", [])
        keys = [o["Key"] for o in found]
        return {k.removeprefix(self.key("")): self.read(k) for k in keys}

    def read(self, key: str) -> bytes:
        return self.theirs.get_object(Bucket="exports", Key=key)["Body"].read()

    def uploads(self) -> list[str]:
        found = self.theirs.list_multipart_uploads(Bucket="exports", Prefix=self.key(""))
        return [upload["Key"].removeprefix(self.key("")) for upload in found.get("Uploads", [])]


@pytest.fixture
def place(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return Place(s3_server, tmp_path.name)


def folder_of(tmp_path: Path, files: dict[str, bytes]) -> Path:
    folder = tmp_path / f"folder-{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    for name, content in (files | {EXPORT_MARK: b"written by evomerge\n"}).items():
        (folder / name).write_bytes(content)
    return folder


def digests(files: dict[str, bytes]) -> dict[str, str]:
    return {name: f"sha256:{hashlib.sha256(content).hexdigest()}" for name, content in files.items()}


def test_an_export_is_there_with_its_manifest_and_is_found_again(place: Place, tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": os.urandom(LARGE)}
    assert place.earlier(TASK) is None
    assert place.put(TASK, folder_of(tmp_path, files)) == digests(files)
    found = place.contents()
    manifest = ExportManifest.model_validate_json(found.pop(EXPORT_MARK))
    assert found == files
    assert manifest.task == TASK
    assert {n: (f.size, f.sha256) for n, f in manifest.files.items()} == {
        n: (len(content), digests(files)[n]) for n, content in files.items()
    }
    assert place.earlier(TASK) == digests(files)
    assert place.earlier(OTHER) is None


def test_the_export_of_another_task_is_replaced_as_a_whole(place: Place, tmp_path: Path) -> None:
    place.put(OTHER, folder_of(tmp_path, {"model-00001-of-00002.safetensors": b"1", "config.json": b"[]"}))
    files = {"config.json": b"{}", "model.safetensors": b"weights"}
    place.put(TASK, folder_of(tmp_path, files))
    found = place.contents()
    del found[EXPORT_MARK]
    assert found == files


def test_an_export_that_has_lost_a_file_is_not_complete(place: Place, tmp_path: Path) -> None:
    place.put(TASK, folder_of(tmp_path, {"config.json": b"{}", "model.safetensors": b"weights"}))
    place.theirs.delete_object(Bucket="exports", Key=place.key("model.safetensors"))
    assert place.earlier(TASK) is None


@pytest.mark.parametrize("mark", [None, EXPORT_MARK, BEGUN])
def test_what_no_export_wrote_is_left_alone(mark: str | None, place: Place, tmp_path: Path) -> None:
    before = {"thesis/chapter-1.tex": b"years of work", "config.json": b"mine"} | (
        {mark: b"my own mark"} if mark else {}
    )
    for name, content in before.items():
        place.write(name, content)
    with pytest.raises(InputError, match=r"no export wrote \(.*config.json, thesis/chapter-1.tex\); name a prefix"):
        place.earlier(TASK)
    with pytest.raises(InputError):
        place.put(TASK, folder_of(tmp_path, {"config.json": b"{}"}))
    assert place.contents() == before


def test_reports_under_the_prefix_are_no_part_of_it(place: Place, tmp_path: Path) -> None:
    place.write("reports/some-uid/abc.json", b"{}")
    place.put(TASK, folder_of(tmp_path, {"config.json": b"{}"}))
    assert place.contents()["reports/some-uid/abc.json"] == b"{}"


def test_an_export_killed_at_any_step_is_recognised_and_replaced(place: Place, tmp_path: Path) -> None:
    """Killed before each request that it makes, one after the other."""
    old = {"config.json": b"[]", "old.md": b"old"}
    files = {"config.json": b"{}", "model.safetensors": os.urandom(LARGE)}
    folder = folder_of(tmp_path, files)
    place.put(OTHER, folder_of(tmp_path, old))
    step, ended = 0, None
    while ended != 0:
        ended = killed_before_request(step, place, folder)
        assert ended in (0, -signal.SIGKILL)
        found = place.contents()
        if EXPORT_MARK in found:
            task = ExportManifest.model_validate_json(found[EXPORT_MARK]).task
            assert {n: found.get(n) for n in (old if task == OTHER else files)} == (old if task == OTHER else files)
        step += 1
        if step % 3 == 0:  # another task's export comes between
            place.put(OTHER, folder_of(tmp_path, old))
            assert set(place.contents()) == {*old, EXPORT_MARK}
            assert place.uploads() == []
    assert step > 8
    assert place.earlier(TASK) == digests(files)
    assert set(place.contents()) == {*files, EXPORT_MARK}
    assert place.uploads() == []


def killed_before_request(number: int, place: Place, folder: Path) -> int:
    """The exit of a process that exports and is killed before its request `number`; 0 where it made fewer."""
    script = PUT.replace(
        "s3_export.put_export(s3.connect(S3(endpoint=sys.argv[1]))",
        "import itertools, os, signal\n"
        "count, client = itertools.count(), s3.connect(S3(endpoint=sys.argv[1]))\n"
        f"client.meta.events.register('before-send.s3', "
        f"lambda **_: os.kill(os.getpid(), signal.SIGKILL) if next(count) == {number} else None)\n"
        "s3_export.put_export(client",
    )
    command = [sys.executable, "-c", script, place.server.endpoint, place.uri, TASK, str(folder)]
    return subprocess.run(command, check=False).returncode


def test_refused_credentials_may_be_mended(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", place.server.stranger)
    place.client = s3.connect(S3(endpoint=place.server.endpoint))
    with pytest.raises(StorageError, match="may not list, read and write it") as raised:
        place.put(TASK, folder_of(tmp_path, {"config.json": b"{}"}))
    assert [problem.path for problem in raised.value.problems] == ["export"]


def test_a_part_that_arrives_damaged_is_refused_and_the_export_is_not_complete(place: Place, tmp_path: Path) -> None:
    def damage(request: Any, **_: Any) -> None:
        content = bytes(request.body.read() if hasattr(request.body, "read") else request.body)
        request.body = content[:-1] + bytes([content[-1] ^ 1])

    folder = folder_of(tmp_path, {"config.json": b"{}", "model.safetensors": os.urandom(LARGE)})
    place.client.meta.events.register_last("before-send.s3.UploadPart", damage)
    with pytest.raises(StorageError, match=r"cannot be written: http://.* answered \w+"):
        place.put(TASK, folder)
    assert place.earlier(TASK) is None
    assert place.uploads() == []
    place.client = s3.connect(S3(endpoint=place.server.endpoint))
    place.put(TASK, folder)
    assert place.earlier(TASK) is not None
