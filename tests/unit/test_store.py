"""The store over local files and a real S3 server: what is brought here, what is refused, and in which words."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evomerge_contract.manifest import S3, Storage
from evomerge_worker.errors import InputError, StorageError, WorkerError
from evomerge_worker.store import Store, s3, s3_source
from hub import running_hub
from s3 import S3Server, s3_server

__all__ = ["s3_server"]

MODEL = {
    "config.json": b"{}",
    "generation_config.json": b"{}",
    "model-00001-of-00002.safetensors": os.urandom(10_000),
    "model-00002-of-00002.safetensors": os.urandom(20_000),
    "model.safetensors.index.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"x",
}
UNWANTED = {
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": b"the same once more",
    "README.md": b"words",
    "original/config.json": b"{}",
    "original/model.safetensors": b"another format",
}
CODE = {"modeling_mine.py": b"print()"}


def folder_of(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refusal(call: Callable[..., Path], *args: Any, kind: type[WorkerError] = InputError) -> str:
    """The one sentence with which the call is refused; its path is what the caller gave as `where`."""
    with pytest.raises(kind) as error:
        call(*args, where="models.mine")
    (problem,) = error.value.problems
    assert problem.path == "models.mine"
    assert str(error.value) == f"models.mine: {problem.message}"
    return problem.message


def disturbance(call: Callable[..., Path], *args: Any) -> str:
    """As `refusal`, of what is cured outside the manifest."""
    return refusal(call, *args, kind=StorageError)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(Storage(), tmp_path / "cache")


# file://


@pytest.mark.parametrize("form", ["file://{}", "file:{}", "file://localhost{}"])
def test_a_folder_is_used_where_it_lies(form: str, local: Store, tmp_path: Path) -> None:
    folder = folder_of(MODEL, tmp_path / "my models" / "ä")
    quoted = folder.as_uri().removeprefix("file://")
    assert local.model(form.format(quoted)) == folder
    assert local.file(form.format(quoted) + "/config.json") == folder / "config.json"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "is empty or does not exist"),
        ({"llama/config.json": b"{}"}, "has no config.json, but its folder llama/ has one; is the path one level too"),
        ({"README.md": b""}, "has no config.json; it must be the folder of a Hugging Face checkpoint"),
        ({"adapter_config.json": b"{}"}, "is an adapter, not a whole model; name its model, with this as"),
        ({"config.json": b"{}", "pytorch_model.bin": b""}, "only as pickles (pytorch_model.bin)"),
        ({"config.json": b"{}", "consolidated.safetensors": b""}, "only in Mistral's own format"),
        ({"config.json": b"{}", "model.gguf": b""}, "only as GGUF (model.gguf)"),
        ({"config.json": b"{}"}, "has no *.safetensors files"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_refused(
    files: dict[str, bytes], words: str, local: Store, tmp_path: Path
) -> None:
    folder = folder_of(files, tmp_path / "a bel")
    message = refusal(local.model, folder.as_uri())
    assert message.startswith(f"{folder} ")
    assert words in message


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "is empty or does not exist"),
        (MODEL, "has no adapter_config.json; it must be the folder of a PEFT adapter"),
        ({"adapter_config.json": b"{}"}, "has no adapter_model.safetensors"),
        ({"adapter_config.json": b"{}", "adapter_model.bin": b""}, "its weights only as a pickle (adapter_model.bin)"),
    ],
)
def test_a_folder_that_is_no_adapter_is_refused(
    files: dict[str, bytes], words: str, local: Store, tmp_path: Path
) -> None:
    message = refusal(local.adapter, folder_of(files, tmp_path / "lora").as_uri())
    assert words in message


def test_a_file_is_no_model_and_a_folder_is_no_file(local: Store, tmp_path: Path) -> None:
    folder_of({"x": b""}, tmp_path)
    assert "is a file; a model is a folder" in refusal(local.model, (tmp_path / "x").as_uri())
    assert "is a folder; a file is needed" in refusal(local.file, tmp_path.as_uri())
    assert "does not exist" in refusal(local.file, (tmp_path / "y").as_uri())


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("file://models/abel", "write file:///folder, with three slashes"),
        ("file:models/abel", "not an absolute path"),
        ("models/abel", "write file:///folder, s3://bucket/prefix or hf://org/name@commit"),
        ("gs://models/abel", "no place that is known"),
        ("s3:///abel", "names no bucket"),
        ("s3:models/abel", "names no bucket"),
        ("hf://org/name", "it names no commit"),
        ("hf://org/name@main", "'main' is not a full commit"),
        ("hf://org/name@0123abc", "'0123abc' is not a full commit"),
        ("hf://name@main", "write hf://org/name@commit"),
    ],
)
def test_a_uri_that_names_nothing_for_certain_is_refused_before_anything_is_asked(
    uri: str, words: str, local: Store
) -> None:
    assert words in refusal(local.model, uri)


def test_data_from_the_hub_are_refused(local: Store) -> None:
    assert "names models only" in refusal(local.file, f"hf://org/name@{'0' * 40}/test.jsonl")


# s3://


@pytest.fixture
def settings(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """How to reach the server, with its credentials in the environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return Storage(s3=S3(endpoint=s3_server.endpoint))


@pytest.fixture
def mine(s3_server: S3Server, tmp_path: Path) -> str:
    """`models/<the test's own prefix>`, with a model under mine/."""
    s3_server.upload(folder_of(MODEL | UNWANTED | CODE, tmp_path / "mine"), "models", f"{tmp_path.name}/mine/")
    return f"models/{tmp_path.name}"


def put(server: S3Server, place: str, name: str, content: bytes) -> None:
    bucket, _, prefix = place.partition("/")
    server.client().put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=content)


@pytest.mark.parametrize("slash", ["", "/"])
def test_of_a_model_in_s3_only_what_is_needed_is_fetched(
    slash: str, settings: Storage, mine: str, tmp_path: Path
) -> None:
    folder = Store(settings, tmp_path / "cache").model(f"s3://{mine}/mine{slash}")
    assert contents(folder) == MODEL


def test_of_an_adapter_in_s3_its_two_files_are_fetched(
    settings: Storage, mine: str, s3_server: S3Server, tmp_path: Path
) -> None:
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"1"}
    adapter |= {"tokenizer.json": b"{}"}  # it may have been trained with tokens of its own
    others = {"README.md": b"", "optimizer.pt": b"", "generation_config.json": b"{}"}
    s3_server.upload(folder_of(adapter | others, tmp_path / "lora"), "models", f"{tmp_path.name}/lora/")
    folder = Store(settings, tmp_path / "cache").adapter(f"s3://{mine}/lora")
    assert contents(folder) == adapter


def test_python_files_come_only_with_trust(settings: Storage, mine: str, tmp_path: Path) -> None:
    folder = Store(settings, tmp_path / "cache", trust_remote_code=True).model(f"s3://{mine}/mine")
    assert contents(folder) == MODEL | CODE


def test_a_model_in_the_cache_is_used_again_until_it_changes_in_s3(
    settings: Storage, mine: str, s3_server: S3Server, tmp_path: Path
) -> None:
    uri = f"s3://{mine}/mine"
    first = Store(settings, tmp_path / "cache").model(uri)
    (first / "note").write_bytes(b"")  # it would be gone from a folder that is pulled anew
    assert Store(settings, tmp_path / "cache").model(uri) == first
    assert (first / "note").exists()
    put(s3_server, mine, "mine/config.json", b'{"a": 1}')
    changed = Store(settings, tmp_path / "cache").model(uri)
    assert contents(changed) == MODEL | {"config.json": b'{"a": 1}'}


def test_a_model_that_changes_under_the_download_is_not_kept(
    settings: Storage, mine: str, s3_server: S3Server, tmp_path: Path
) -> None:
    def overwrite(**_: Any) -> None:
        put(s3_server, mine, "mine/config.json", b"[]")

    client, uri = s3.connect(settings.s3), f"s3://{mine}/mine"
    client.meta.events.register("after-call.s3.ListObjectsV2", overwrite)
    with pytest.raises(StorageError, match="it changed meanwhile; try again"):
        s3_source.fetch_model(client, uri, "uri", tmp_path / "cache", code=False)
    folder = s3_source.fetch_model(s3.connect(settings.s3), uri, "uri", tmp_path / "cache", code=False)
    assert contents(folder) == MODEL | {"config.json": b"[]"}


def test_a_file_in_s3_is_told_from_those_whose_names_begin_alike(
    settings: Storage, mine: str, s3_server: S3Server, tmp_path: Path
) -> None:
    for key in ("data/items.jsonl", "data/items.jsonl.old", "data/items"):
        put(s3_server, mine, key, key.encode())
    store = Store(settings, tmp_path / "cache")
    for key in ("data/items.jsonl", "data/items"):
        assert store.file(f"s3://{mine}/{key}").read_bytes() == key.encode()
    assert "does not exist" in disturbance(store.file, f"s3://{mine}/data/item")
    assert "names no file" in refusal(store.file, f"s3://{mine}/data/")


def test_a_prefix_one_level_too_high_is_a_mistake(settings: Storage, mine: str, tmp_path: Path) -> None:
    message = refusal(Store(settings, tmp_path / "cache").model, f"s3://{mine}")
    assert message == f"s3://{mine} has no config.json, but its folder mine/ has one; is the path one level too high?"


def test_a_prefix_with_nothing_under_it_may_be_filled_later(settings: Storage, mine: str, tmp_path: Path) -> None:
    message = disturbance(Store(settings, tmp_path / "cache").model, f"s3://{mine}/min")
    assert message == (
        f"s3://{mine}/min is empty or does not exist; put it there, or name the right place in a new run"
    )


def test_a_missing_bucket_may_be_made_later(settings: Storage, tmp_path: Path) -> None:
    store = Store(settings, tmp_path / "cache")
    for call in (store.model, store.file):
        assert "there is no bucket no-such-bucket at http://" in disturbance(call, "s3://no-such-bucket/mine")


def test_a_name_that_no_bucket_can_have_is_a_mistake(settings: Storage, tmp_path: Path) -> None:
    assert "cannot be read" in refusal(Store(settings, tmp_path / "cache").model, "s3://no bucket/mine")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        (
            "AWS_ACCESS_KEY_ID",
            "nobody",
            "refuses the S3 credentials (InvalidAccessKeyId); mend them",
        ),
        ("AWS_SECRET_ACCESS_KEY", "guessed", "refuses the S3 credentials (SignatureDoesNotMatch)"),
    ],
)
def test_wrong_credentials_are_refused(
    variable: str, value: str, words: str, settings: Storage, mine: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv(variable, value)
    assert words in disturbance(Store(settings, tmp_path / "cache").model, f"s3://{mine}/mine")


def test_credentials_without_the_right_to_read_are_refused(
    settings: Storage, mine: str, s3_server: S3Server, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.stranger)
    message = disturbance(Store(settings, tmp_path / "cache").model, f"s3://{mine}/mine")
    assert "the S3 credentials may not list and read it (AccessDenied); give them that right, or use others" in message


def test_without_credentials_the_variables_to_set_are_named(
    settings: Storage, mine: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    message = disturbance(Store(settings, tmp_path / "cache").model, f"s3://{mine}/mine")
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in message


@pytest.mark.parametrize(
    ("path_style", "place"),
    [
        (True, "https://s3.example.com/models/config.json?"),
        (False, "https://models.s3.example.com/config.json?"),
        (None, "https://s3.example.com/models/config.json?"),
    ],
)
def test_buckets_are_addressed_and_requests_signed_as_the_settings_say(
    path_style: bool | None, place: str, settings: Storage
) -> None:
    wanted = S3(endpoint="https://s3.example.com", region="eu-central-1", path_style=path_style)
    url = s3.connect(wanted).generate_presigned_url("get_object", Params={"Bucket": "models", "Key": "config.json"})
    assert url.startswith(place)
    assert "%2Feu-central-1%2Fs3%2F" in url


def test_without_keys_in_the_environment_the_ambient_chain_is_asked(
    s3_server: S3Server, mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a profile's process here, or a service account's token on a cluster."""
    say = (
        f'printf \'%s\' \'{{"Version": 1, "AccessKeyId": "{s3_server.key}", "SecretAccessKey": "{s3_server.secret}"}}\''
    )
    (tmp_path / "say").write_text(f"#!/bin/sh\n{say}\n")
    (tmp_path / "say").chmod(0o755)
    (tmp_path / "config").write_text(f"[profile lab]\nregion = us-east-1\ncredential_process = {tmp_path / 'say'}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    store = Store(Storage(s3=S3(endpoint=s3_server.endpoint)), tmp_path / "cache")
    assert contents(store.model(f"s3://{mine}/mine")) == MODEL


def test_an_endpoint_that_is_no_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"spec\.storage\.s3: .*Invalid endpoint: nowhere"):
        Store(Storage(s3=S3(endpoint="nowhere")), tmp_path).model("s3://models/mine")


def test_a_server_that_is_not_there_may_be_there_later(settings: Storage, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between the client's own attempts
    gone = Storage(s3=S3(endpoint="http://127.0.0.1:9"))
    with pytest.raises(StorageError, match=r"s3://models/mine could not be read: http://127.0.0.1:9 cannot be reached"):
        Store(gone, tmp_path).model("s3://models/mine")


def test_a_server_in_trouble_may_recover(settings: Storage, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between the client's own attempts
    with running_hub() as server:
        server.broken = True
        with pytest.raises(StorageError, match=r"s3://models/mine cannot be read: .* answered 503"):
            Store(Storage(s3=S3(endpoint=server.endpoint)), tmp_path).model("s3://models/mine")
