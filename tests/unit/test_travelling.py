"""All that a model's folder holds beside its weights travels with them, unless there is a reason not to."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from evomerge_contract.manifest import Storage
from evomerge_contract.recipe import Recipe
from evomerge_worker.merge import export_checkpoint
from evomerge_worker.shards import Checkpoint
from evomerge_worker.store import Store
from evomerge_worker.store.companions import companions, companions_among
from evomerge_worker.store.pinned import content_digest
from evomerge_worker.store.wanted import wanted
from hub import COMMIT, Hub, running_hub
from s3 import S3Server, s3_server
from tiny_models import Tiny
from vocabularies import OF_A

__all__ = ["s3_server"]

TRAVELS = {
    "preprocessor_config.json": b"{}",
    "processor_config.json": b"{}",
    "video_preprocessor_config.json": b"{}",
    "modules.json": b"[]",
    "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    "2_Dense/model.safetensors": b"its own",
    "additional_chat_templates/tool_use.jinja": b"T{{ messages[0].content }}",
    "LICENSE": b"of its authors",
    "of_no_known/kind/at_all.dat": b"1",
    "figures/losses [1].png": b"no pattern",
}
STAYS = {
    "README.md": b"about this one",
    "pytorch_model.bin": b"pickle",
    "pytorch_model.bin.index.json": b"{}",
    "2_Dense/pytorch_model.bin": b"pickle",
    "onnx/model.onnx": b"1",
    "onnx/config.json": b"{}",
    "original/params.json": b"{}",
    "another/model.safetensors": b"1",
    "another/config.json": b"{}",
    "checkpoint-500/tokenizer.json": b"{}",
    "checkpoint-500/trainer_state.json": b"{}",
    "trainer_state.json": b"{}",
    "training_args.bin": b"pickle",
    "optimizer.pt": b"pickle",
    "runs/events.out.tfevents.1": b"1",
    "reports/1.json": b"{}",
    ".cache/huggingface/download/config.json.metadata": b"1",
    ".gitattributes": b"1",
    "log.jsonl": b"{}",
    "modeling_mine.py": b"print()",
    "__pycache__/modeling_mine.cpython-311.pyc": b"1",
}


def write(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.fixture
def full(tiny: Tiny, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny(seed=1), tmp_path / "full"))
    write(TRAVELS | STAYS, folder)
    return folder


def held(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def linear(*models: str, **more: Any) -> Recipe:
    told = [{"model": model, "parameters": {"weight": 1}} for model in models]
    return Recipe.model_validate({"merge_method": "linear", "models": told, **more})


def test_each_name_stays_or_travels_for_its_reason() -> None:
    assert set(companions_among(TRAVELS | STAYS, code=False)) == set(TRAVELS)
    assert set(companions_among(TRAVELS | STAYS, code=True)) == {*TRAVELS, "modeling_mine.py"}


def test_a_result_has_the_companions_of_its_anchor_in_their_folders(tiny: Tiny, full: Path, tmp_path: Path) -> None:
    sources = {"full": Checkpoint.open(full, "full"), "b": Checkpoint.open(tiny(seed=2), "b")}
    written = export_checkpoint(linear("full", "b"), sources, tmp_path / "out", mask_seed=0)
    assert held(tmp_path / "out") == set(written)
    assert set(TRAVELS) <= set(written)
    assert not set(STAYS) & set(written)
    assert (tmp_path / "out" / "1_Pooling" / "config.json").read_bytes() == TRAVELS["1_Pooling/config.json"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"


def test_with_another_tokenizer_its_templates_travel_and_all_else_is_the_anchors(
    tiny: Tiny, full: Path, tmp_path: Path
) -> None:
    giver = Path(shutil.copytree(tiny(seed=2, vocabulary=OF_A), tmp_path / "giver"))
    theirs = {"additional_chat_templates/rag.jinja": b"R", "preprocessor_config.json": b'{"theirs": 1}'}
    write(theirs, giver)
    sources = {"full": Checkpoint.open(full, "full"), "giver": Checkpoint.open(giver, "giver")}
    recipe = linear("full", "giver", tokenizer_source="giver")
    written = export_checkpoint(recipe, sources, tmp_path / "out", mask_seed=0)
    assert "additional_chat_templates/rag.jinja" in written
    assert "additional_chat_templates/tool_use.jinja" not in written
    assert (tmp_path / "out" / "preprocessor_config.json").read_bytes() == b"{}"
    assert "1_Pooling/config.json" in written


def test_a_template_that_the_recipe_asks_for_is_the_only_one_and_all_else_travels(full: Path, tmp_path: Path) -> None:
    sources = {"full": Checkpoint.open(full, "full")}
    written = export_checkpoint(linear("full", chat_template="{{ 'mine' }}"), sources, tmp_path / "out", mask_seed=0)
    assert not any(name.startswith("additional_chat_templates") for name in written)
    assert {name for name in TRAVELS if "templates" not in name} <= set(written)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ 'mine' }}"


def test_a_results_own_result_has_them_too_and_no_record_of_the_first(full: Path, tmp_path: Path) -> None:
    sources = {"full": Checkpoint.open(full, "full")}
    records = {"run.json": "{}", "report.html": "", "recipe.yaml": ""}
    export_checkpoint(linear("full"), sources, tmp_path / "one", mask_seed=0, extra_files=records)
    again = {"one": Checkpoint.open(tmp_path / "one", "one")}
    written = export_checkpoint(linear("one"), again, tmp_path / "two", mask_seed=0)
    assert set(TRAVELS) <= set(written)
    assert not records.keys() & set(written)


def test_the_digest_of_a_models_content_counts_none_of_them(tiny: Tiny, full: Path) -> None:
    """It is what runs that were begun before have pinned."""
    assert content_digest(full, code=False) == content_digest(tiny(seed=1), code=False)


def test_links_to_nowhere_are_passed_over(full: Path) -> None:
    (full / "dangling.json").symlink_to(full / "nowhere")
    assert "dangling.json" not in companions(full, code=False)


def test_from_s3_they_come_with_the_model(
    full: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from evomerge_contract.manifest import S3

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.upload(full, "models", f"{tmp_path.name}/full/")
    storage = Storage(s3=S3(endpoint=s3_server.endpoint))
    folder = Store(storage, tmp_path / "cache").model(f"s3://models/{tmp_path.name}/full")
    assert held(folder) == set(wanted(held(full), code=False))
    assert set(TRAVELS) <= held(folder)
    again = Store(storage, tmp_path / "cache").model(f"s3://models/{tmp_path.name}/full")
    assert again == folder


def test_an_export_to_s3_and_back_keeps_them(
    full: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from evomerge_contract.manifest import S3
    from evomerge_worker.store.s3_export import earlier_export, put_export

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    export_checkpoint(linear("full"), {"full": Checkpoint.open(full, "full")}, tmp_path / "out", mask_seed=0)
    store = Store(Storage(s3=S3(endpoint=s3_server.endpoint)), tmp_path / "cache")
    uri, task = f"s3://models/{tmp_path.name}/out", "sha256:" + "0" * 64
    digests = put_export(store.s3, uri, task, tmp_path / "out")
    assert set(TRAVELS) <= digests.keys()
    assert earlier_export(store.s3, uri, task) == digests
    assert set(TRAVELS) <= held(store.model(uri))


def speak_to(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does when it is set before the client is first imported."""
    template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_from_the_hub_they_come_with_the_model(full: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with running_hub() as server:
        speak_to(server, monkeypatch)
        server.repos["team/full"] = full
        folder = Store(Storage(), tmp_path / "cache").model(f"hf://team/full@{COMMIT}")
    assert held(folder) == set(wanted(held(full), code=False))
    assert set(TRAVELS) <= held(folder)


def test_a_model_with_an_adapter_keeps_those_of_the_model(full: Path, tmp_path: Path) -> None:
    from adapters import write_adapter
    from evomerge_contract.task import Source
    from evomerge_worker.sources import source_folder

    adapter = write_adapter(tmp_path / "lora", Checkpoint.open(full, "full"))
    source = Source(name="full", uri=full.as_uri(), adapter=adapter.as_uri())
    made = source_folder(source, Store(Storage(), tmp_path / "cache"), code=False)
    assert set(TRAVELS) <= held(made)
    assert "evomerge_made_of.json" not in companions(made, code=False)
