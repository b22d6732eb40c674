"""The store over a hub on loopback: pinned models come, nothing else does, and each refusal says why."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from evomerge_contract.manifest import Storage
from evomerge_contract.task import Source
from evomerge_worker.errors import InputError, StorageError, WorkerError
from evomerge_worker.store import Store, with_commits
from hub import COMMIT, Hub, running_hub, speak_to

MODEL = {
    "config.json": b"{}",
    "model.safetensors": os.urandom(3_000_000),
    "tokenizer.json": b'{"version": "1.0"}',
    "generation_config.json": b"{}",
}
UNWANTED = {
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": b"the same once more",
    "README.md": b"words",
    "original/config.json": b"{}",
    "original/tokenizer.model": b"another format",
}
CODE = {"modeling_mine.py": b"print()"}
URI = f"hf://team/mine@{COMMIT}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the model team/mine, to which this process speaks."""
    with running_hub() as server:
        speak_to(server.endpoint, monkeypatch)
        serve(server, "team/mine", MODEL | UNWANTED | CODE, tmp_path)
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Storage(), tmp_path / "cache")


def serve(hub: Hub, repo: str, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.repos[repo] = tmp_path / "served" / repo
    for name, content in files.items():
        (hub.repos[repo] / name).parent.mkdir(parents=True, exist_ok=True)
        (hub.repos[repo] / name).write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refusal(store: Store, uri: str, kind: type[WorkerError] = InputError) -> str:
    with pytest.raises(kind) as error:
        store.model(uri, where="models.mine")
    (problem,) = error.value.problems
    assert problem.path == "models.mine"
    assert problem.message.startswith(uri)
    return problem.message


def test_of_a_pinned_model_only_what_is_needed_is_asked_for(hub: Hub, store: Store) -> None:
    assert contents(store.model(URI)) == MODEL
    asked = {path.partition(f"/resolve/{COMMIT}/")[2] for path in hub.requests if "/resolve/" in path}
    assert asked == set(MODEL)


def test_a_model_in_the_cache_needs_no_request(hub: Hub, store: Store) -> None:
    first = store.model(URI)
    hub.requests.clear()
    assert store.model(URI) == first
    assert hub.requests == []


@pytest.mark.parametrize("uri", ["hf://team/mine", "hf://team/mine@main", URI])
def test_a_model_without_a_commit_has_the_one_that_its_branch_is_at(uri: str, hub: Hub) -> None:
    source = Source(name="mine", uri=uri, adapter=uri)
    assert with_commits(source, "models.mine") == Source(name="mine", uri=URI, adapter=URI)
    assert bool(hub.requests) == (uri != URI)


def test_a_branch_or_model_without_a_commit_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def words(uri: str, kind: type[WorkerError]) -> str:
        with pytest.raises(kind) as error:
            with_commits(Source(name="mine", uri=uri), "models.mine")
        return str(error.value)

    assert "the model has no such commit, branch or tag" in words("hf://team/mine@dev", InputError)
    assert "does not exist, or is private" in words("hf://team/nobody", StorageError)
    assert "names no model of the hub" in words("hf://mine", InputError)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "names no commit, and HF_HUB_OFFLINE forbids to ask for it" in words("hf://team/mine", InputError)


def test_python_files_come_only_with_trust(hub: Hub, tmp_path: Path) -> None:
    folder = Store(Storage(), tmp_path / "cache", trust_remote_code=True).model(URI)
    assert contents(folder) == MODEL | CODE


def test_the_endpoint_is_taken_from_the_environment(hub: Hub, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from evomerge_worker.store import Store; "
        "from evomerge_contract.manifest import Storage; print(Store(Storage(), Path(sys.argv[1])).model(sys.argv[2]))"
    )
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", script, str(tmp_path / "cache"), URI]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert contents(Path(answer.stdout.strip())) == MODEL


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": b"{}", "pytorch_model.bin": b""}, "only as pickles (pytorch_model.bin)"),
        ({"unet/config.json": b"{}", "README.md": b""}, "its folder unet/ has one"),
        ({"README.md": b""}, "has no config.json"),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, "is an adapter"),
    ],
)
def test_a_repository_that_is_no_checkpoint_is_refused(
    files: dict[str, bytes], words: str, hub: Hub, store: Store, tmp_path: Path
) -> None:
    serve(hub, "team/odd", files, tmp_path)
    assert words in refusal(store, f"hf://team/odd@{COMMIT}")
    assert not any(path.endswith(".bin") for path in hub.requests)


def test_a_model_or_commit_that_is_not_there_is_refused(hub: Hub, store: Store) -> None:
    assert "does not exist, or is private" in refusal(store, f"hf://team/nobody@{COMMIT}", StorageError)
    assert "the model has no such commit, branch or tag" in refusal(store, f"hf://team/mine@{'f' * 40}")


def test_a_gated_model_says_what_to_do(hub: Hub, store: Store) -> None:
    hub.gated.add("team/mine")
    assert "accept its terms at the hub and set HF_TOKEN" in refusal(store, URI, StorageError)


def test_offline_only_the_cache_counts(hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "is not in the cache, and HF_HUB_OFFLINE forbids to get it" in refusal(store, URI, StorageError)
    assert hub.requests == []


def test_a_hub_in_trouble_may_recover(hub: Hub, store: Store, monkeypatch: Any) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between the client's own attempts
    hub.broken = True
    with pytest.raises(StorageError, match=rf"{URI} could not be read from {hub.endpoint}: .*503"):
        store.model(URI)
    hub.broken = False
    assert contents(store.model(URI)) == MODEL


def test_a_hub_that_is_not_there_may_be_there_later(hub: Hub, store: Store, monkeypatch: Any) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between the client's own attempts
    speak_to("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(StorageError, match=r"could not be read from http://127.0.0.1:9: .*refused"):
        store.model(URI)
