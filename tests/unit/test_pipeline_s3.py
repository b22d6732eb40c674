"""A pipeline whose models, data, reports and export lie in a real S3 server, and what it does when they go astray."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge_contract.manifest import S3, Storage
from evomerge_contract.report import EXPORT_MARK
from evomerge_worker.errors import InputError
from evomerge_worker.pipeline import Pipeline
from evomerge_worker.process.session import carry_out
from evomerge_worker.store.s3_export import ExportManifest
from pipeline_bench import Bench
from s3 import S3Server, s3_server
from tiny_models import Tiny

__all__ = ["s3_server"]
BUCKET = "pipeline"


class Remote(Bench):
    """A bench whose folder lies in S3."""

    def __init__(self, server: S3Server, folder: Path, tiny: Tiny) -> None:
        self.server, self.prefix = server, folder.name
        super().__init__(folder, tiny, self._publish, self.uri, Storage(s3=S3(endpoint=server.endpoint)))

    def uri(self, path: Path) -> str:
        return f"s3://{BUCKET}/{self.prefix}/{path.relative_to(self.folder)}"

    def _publish(self, folder: Path) -> None:
        self.server.upload(folder, BUCKET, f"{self.prefix}/")

    def key(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    def get(self, name: str) -> bytes:
        return self.server.client().get_object(Bucket=BUCKET, Key=self.key(name))["Body"].read()

    def put(self, name: str, content: bytes) -> None:
        self.server.client().put_object(Bucket=BUCKET, Key=self.key(name), Body=content)

    def names(self, under: str) -> set[str]:
        prefix = self.key(under)
        found = self.server.client().list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return {o["Key"].removeprefix(prefix) for o in found}


@pytest.fixture
def remote(s3_server: S3Server, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Remote:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return Remote(s3_server, tmp_path, tiny)


def test_a_report_is_durable_in_s3_and_found_again(remote: Remote) -> None:
    task = remote.evaluate()
    report = remote.done(task)
    name = f"reports/{task.digest.removeprefix('sha256:')}.json"
    assert report.evaluate is not None
    assert b'"items"' in remote.get(name)
    shutil.rmtree(remote.folder / "cache")
    again = remote.done(task)
    assert again == report  # its seconds too: it was not carried out a second time
    remote.put(name, b"torn")
    assert remote.done(task).evaluate == report.evaluate
    assert remote.get(name) != b"torn"


def test_the_winner_is_exported_and_found_again(remote: Remote) -> None:
    remote.put("best/reports/earlier.json", b"{}")
    task = remote.export(remote.uri(remote.folder / "best"), recipe_text="merge_method: linear\n")
    exported = remote.done(task).export
    assert exported is not None
    assert {"README.md", "config.json", "model.safetensors", "recipe.yaml"} <= exported.files.keys()
    assert remote.names("best/") == {*exported.files, EXPORT_MARK, "reports/earlier.json"}
    manifest = ExportManifest.model_validate_json(remote.get(f"best/{EXPORT_MARK}"))
    assert manifest.task == task.digest
    assert remote.get("best/recipe.yaml") == b"merge_method: linear\n"
    local = remote.done(remote.export((remote.folder / "local").as_uri())).export
    assert local is not None
    assert local.files["model.safetensors"] == exported.files["model.safetensors"]
    assert not list((remote.folder / "cache").glob("scratch-*"))
    remote.put("a/config.json", b"changed since")  # nothing is pulled or merged for what is there
    again = remote.done(task)
    assert again.export == exported


def test_a_stages_winner_is_a_model_without_a_card_and_goes_with_the_export_of_the_run(remote: Remote) -> None:
    remote.put("best/reports/of-the-run/one.json", b"{}")
    place = remote.uri(remote.folder / "best") + "/reports/of-the-run/stages/ps"
    written = remote.done(remote.export(place, card=None)).export
    assert written is not None
    assert "README.md" not in written.files
    assert remote.done(remote.export(place, card=None)).export == written
    last = remote.export(remote.uri(remote.folder / "best"), drop=[place])
    exported = remote.done(last).export
    assert exported is not None
    assert remote.names("best/") == {*exported.files, EXPORT_MARK, "reports/of-the-run/one.json"}
    assert remote.done(last).export == exported, "what is gone already does not matter"


def test_what_no_export_wrote_is_not_dropped(remote: Remote) -> None:
    remote.put("other/notes.txt", b"mine")
    task = remote.export(remote.uri(remote.folder / "best"), drop=[remote.uri(remote.folder / "other")])
    with pytest.raises(InputError, match=r"holds objects that no export wrote \(notes.txt\)"):
        remote.done(task)
    assert remote.get("other/notes.txt") == b"mine"


def changed_model(remote: Remote) -> tuple[str, bytes]:
    content = remote.get("a/model.safetensors")
    return "a/model.safetensors", content[:-1] + bytes([content[-1] ^ 1])


def truncated_model(remote: Remote) -> tuple[str, bytes]:
    return "a/model.safetensors", remote.get("a/model.safetensors")[:-100]


def changed_data(remote: Remote) -> tuple[str, bytes]:
    return "search.jsonl", b'{"prompt": "1+1=", "answer": "2"}\n'


def test_models_that_do_not_fit_are_told_before_their_weights_are_pulled(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evomerge_worker.store.outline._FIRST_BYTES", 16)  # as if the headers were long
    config = json.loads(remote.get("b/config.json"))
    remote.put("b/config.json", json.dumps(config | {"rms_norm_eps": 0.1}).encode())
    task = remote.probe()
    task = task.model_copy(update={"sources": [s.model_copy(update={"digest": None}) for s in task.sources]})
    report = carry_out(Pipeline(remote.folder / "fresh"), task)
    assert report.reason == "InvalidInput"
    assert [(p.path, "rms_norm_eps is 0.1" in p.message) for p in report.problems] == [("models.b", True)]
    assert {path.name for f in (remote.folder / "fresh").glob("*/") for path in f.iterdir()} <= {
        "search.jsonl",
        "select.jsonl",
        "test.jsonl",
    }


@pytest.mark.parametrize("change", [changed_model, truncated_model, changed_data])
def test_changed_content_stops_work_until_it_is_restored(
    change: Callable[[Remote], tuple[str, bytes]], remote: Remote
) -> None:
    name, content = change(remote)
    good = remote.get(name)
    remote.put(name, content)
    path = "objectives.sums.search" if name == "search.jsonl" else "models.a"
    for task in (remote.probe(), remote.evaluate()):
        report = carry_out(Pipeline(remote.folder / "cache"), task)
        assert report.reason == "TryAgain"
        assert [problem.path for problem in report.problems] == [path]
        assert "is not what it was when the run was prepared; restore it" in report.problems[0].message
    remote.put(name, good)
    assert remote.done(remote.probe()).outcome == "Succeeded"
    assert remote.done(remote.evaluate()).outcome == "Succeeded"


@pytest.mark.parametrize("name", ["a/model.safetensors", "a/config.json", "search.jsonl"])
def test_missing_objects_stop_work_until_they_are_there(name: str, remote: Remote) -> None:
    good = remote.get(name)
    remote.server.client().delete_object(Bucket=BUCKET, Key=remote.key(name))
    for task in (remote.probe(), remote.evaluate()):
        report = carry_out(Pipeline(remote.folder / "cache"), task)
        assert report.reason == "TryAgain"
        assert len(report.problems) == 1
    remote.put(name, good)
    assert remote.done(remote.probe()).outcome == "Succeeded"


def test_a_probe_reads_no_weights_where_the_cache_has_them(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr("evomerge_worker.store.stamp._hash", lambda path: hashed.append(path) or "")
    prepared = remote.done(remote.probe()).prepare
    assert prepared is not None
    assert [s.digest for s in prepared.sources] == [s.digest for s in remote.common["sources"]]
    assert hashed == []
