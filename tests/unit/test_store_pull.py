"""Pulling from a real S3 server over networks that break: what is there is kept, what is damaged is noticed."""

import os
import signal
import ssl
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import pytest

from evomerge_contract.manifest import S3, Storage
from evomerge_worker.errors import StorageError
from evomerge_worker.store import Store, pull, s3, s3_source
from evomerge_worker.store.crc import joined
from proxy import proxy
from s3 import S3Server, s3_server

__all__ = ["s3_server"]

MIB = 1 << 20
RANGES = 48
PULL = """
import itertools, os, signal, sys
from pathlib import Path
from evomerge_contract.manifest import S3
from evomerge_worker.store import pull, s3, s3_source
pull.RANGE_BYTES = 1 << 20
client, count = s3.connect(S3(endpoint=sys.argv[1])), itertools.count(1)
last = int(sys.argv[4])
client.meta.events.register("before-send.s3.GetObject",
                            lambda **_: os.kill(os.getpid(), signal.SIGKILL) if next(count) == last else None)
s3_source.fetch_model(client, sys.argv[2], "uri", Path(sys.argv[3]), code=False)
"""


@pytest.fixture
def model(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, bytes]]:
    """The URI of a model in S3, and its files."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    files = {"config.json": b"{}", "model.safetensors": os.urandom(RANGES * MIB - 7), "tokenizer.json": b""}
    (tmp_path / "source").mkdir()
    for name, content in files.items():
        (tmp_path / "source" / name).write_bytes(content)
    s3_server.upload(tmp_path / "source", "pulls", f"{tmp_path.name}/")
    return f"s3://pulls/{tmp_path.name}", files


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill_in_mid_pull(server: S3Server, uri: str, cache: Path, request: int) -> Path:
    """A process that pulls is killed as it makes its GET `request`; the folder that it leaves."""
    command = [sys.executable, "-c", PULL, server.endpoint, uri, str(cache), str(request)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (part,) = cache.glob("*.part")
    return part


def pull_on(server: S3Server, uri: str, cache: Path) -> tuple[Path, int]:
    """Pull in this process; the folder, and the ranges that were asked for."""
    asked = Counter[str]()
    client = s3.connect(S3(endpoint=server.endpoint))
    client.meta.events.register("before-send.s3.GetObject", lambda **_: asked.update(["range"]))
    return s3_source.fetch_model(client, uri, "uri", cache, code=False), asked["range"]


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "RANGE_BYTES", MIB)


def test_a_large_file_comes_in_ranges(
    model: tuple[str, dict[str, bytes]], s3_server: S3Server, tmp_path: Path, small_ranges: None
) -> None:
    uri, files = model
    folder, asked = pull_on(s3_server, uri, tmp_path / "cache")
    assert contents(folder) == files
    assert asked == RANGES + 1  # and config.json; an empty file needs no request


def test_a_pull_that_was_killed_goes_on_with_what_is_missing(
    model: tuple[str, dict[str, bytes]], s3_server: S3Server, tmp_path: Path, small_ranges: None
) -> None:
    uri, files = model
    part = kill_in_mid_pull(s3_server, uri, tmp_path / "cache", 35)
    there = len((part / ".journal").read_text().splitlines())
    assert there >= 35 - 1 - s3.CONNECTIONS
    folder, asked = pull_on(s3_server, uri, tmp_path / "cache")
    assert contents(folder) == files
    assert asked == RANGES + 1 - there


def test_what_was_damaged_after_a_kill_is_pulled_again(
    model: tuple[str, dict[str, bytes]], s3_server: S3Server, tmp_path: Path, small_ranges: None
) -> None:
    uri, files = model
    part = kill_in_mid_pull(s3_server, uri, tmp_path / "cache", 35)
    lines = (part / ".journal").read_text().splitlines()
    offset = int(next(line for line in lines if line.endswith("model.safetensors")).split()[1])
    with (part / "model.safetensors").open("r+b") as file:
        file.seek(offset)
        file.write(bytes(64))
    with (part / ".journal").open("a") as journal:
        journal.write("123 torn")  # a line that was being written
    folder, asked = pull_on(s3_server, uri, tmp_path / "cache")
    assert contents(folder) == files
    assert asked == RANGES + 1 - len(lines) + 1


def test_a_connection_that_breaks_is_taken_up_where_it_broke(
    model: tuple[str, dict[str, bytes]], s3_server: S3Server, tmp_path: Path
) -> None:
    uri, files = model
    passed, cuts = Counter[str](), [5 * MIB, 20 * MIB]

    def cut(data: bytes) -> bytes | None:
        passed["bytes"] += len(data)
        if cuts and passed["bytes"] > cuts[0]:
            del cuts[0]
            return None
        return data

    with proxy(s3_server.endpoint, cut) as endpoint:
        folder = Store(Storage(s3=S3(endpoint=endpoint)), tmp_path / "cache").model(uri)
    assert contents(folder) == files
    assert cuts == []
    assert passed["bytes"] < 1.2 * RANGES * MIB  # not from the beginning


def test_a_file_that_arrives_damaged_is_noticed_by_its_checksum_and_pulled_again(
    model: tuple[str, dict[str, bytes]], s3_server: S3Server, tmp_path: Path, small_ranges: None
) -> None:
    """The server knows its CRC-32: boto3 sends one with what it puts as a whole."""
    uri, files = model
    key = f"{tmp_path.name}/model.safetensors"
    s3_server.client().put_object(Bucket="pulls", Key=key, Body=files["model.safetensors"])
    passed = Counter[str]()

    def change(data: bytes) -> bytes:
        before = passed["bytes"] // (10 * MIB)
        passed["bytes"] += len(data)
        once = before == 0 and passed["bytes"] // (10 * MIB) == 1
        return data[:-1] + bytes([data[-1] ^ 1]) if once else data

    with proxy(s3_server.endpoint, change) as endpoint:
        store = Store(Storage(s3=S3(endpoint=endpoint)), tmp_path / "cache")
        with pytest.raises(StorageError, match=r"model\.safetensors arrived damaged") as raised:
            store.model(uri, where="models.mine")
        assert [problem.path for problem in raised.value.problems] == ["models.mine"]
        assert contents(store.model(uri)) == files


def test_a_file_that_comes_as_a_whole_and_damaged_is_noticed_by_its_checksum_and_pulled_again(
    model: tuple[str, dict[str, bytes]], s3_server: S3Server, tmp_path: Path
) -> None:
    uri, files = model
    files["config.json"] = b'{"architectures": ["LlamaForCausalLM"]}'
    s3_server.client().put_object(Bucket="pulls", Key=f"{tmp_path.name}/config.json", Body=files["config.json"])
    damaged: list[bytes] = []

    def change(data: bytes) -> bytes:
        if b"LlamaForCausalLM" in data and not damaged:
            damaged.append(data)
            return data.replace(b"LlamaForCausalLM", b"GemmaForCausalLM")
        return data

    with proxy(s3_server.endpoint, change) as endpoint:
        store = Store(Storage(s3=S3(endpoint=endpoint)), tmp_path / "cache")
        with pytest.raises(StorageError, match=r"could not be read.*checksum"):
            store.model(uri)
        assert damaged
        assert contents(store.model(uri)) == files


def test_an_endpoint_with_a_certificate_of_ones_own(
    model: tuple[str, dict[str, bytes]], s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, files = model
    certificate, key = tmp_path / "ca.crt", tmp_path / "ca.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    with proxy(s3_server.endpoint, tls=tls) as endpoint:
        settings = Storage(s3=S3(endpoint=endpoint))
        with pytest.raises(StorageError, match=r"no trusted TLS with https://.*: set spec\.storage\.s3\.caConfigMap"):
            Store(settings, tmp_path / "cache").model(uri)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        assert contents(Store(settings, tmp_path / "cache").model(uri)) == files


def test_bytes_put_together_have_the_checksum_of_the_whole() -> None:
    pieces = [os.urandom(size) for size in (1000, 0, 77_777, 1)]
    assert joined((zlib.crc32(piece), len(piece)) for piece in pieces) == zlib.crc32(b"".join(pieces))
