"""The quickstart on a cluster, with the real worker, by the chart as a person installs it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from image_references import Images
from kubernetes_cluster import Cluster
from releases import Release
from s3 import S3Server
from searches import Search, identical_part, light_manifest, log_of

QUICKSTART = Path(__file__).parents[2] / "examples/quickstart"
BUCKET = "evomerge"
CANDIDATES = 24
EXPORTED = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "README.md",
    "recipe.yaml",
    "log.jsonl",
    "report.html",
    "run.json",
}
pytestmark = pytest.mark.timeout(2400)  # the worker's image is built beside the first tests


@dataclass(frozen=True)
class Quickstart:
    """The search in the cluster when it has succeeded, its export on this machine, and the same search run here."""

    status: dict[str, Any]
    export: Path
    local: Path


@pytest.fixture(scope="module")
def secret(cluster: Cluster, installed: Release, s3: S3Server) -> None:
    """The S3 server's keys in the namespace that the installed operators serve."""
    keys = {name: s3.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    metadata = {"name": "s3-credentials", "namespace": installed.namespace}
    cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": keys})


@pytest.fixture(scope="module")
def quickstart(
    cluster: Cluster,
    installed: Release,
    images: Images,
    s3: S3Server,
    secret: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Quickstart]:
    """The example's manifest with fewer candidates, here and in the cluster at once."""
    folder = tmp_path_factory.mktemp("quickstart")
    for part in ("models", "data"):
        s3.upload(QUICKSTART / part, BUCKET, f"quickstart/{part}/")
    assert images.worker == images.wanted_worker
    manifest = yaml.safe_load((QUICKSTART / "cluster.yaml").read_text())
    manifest["spec"]["storage"]["s3"]["endpoint"] = s3.endpoint
    manifest["spec"]["stages"][0]["search"]["candidates"] = CANDIDATES
    manifest["spec"]["parallelism"] = 2
    file = folder / "evomerge.yaml"
    file.write_text(yaml.safe_dump(manifest))
    cluster.kubectl("apply", f"--namespace={installed.namespace}", f"--filename={file}")
    search = Search(cluster, installed.namespace, manifest["metadata"]["name"])
    local = _run_here(file, folder / "local", s3)
    status = search.succeeds(600)
    yield Quickstart(status, _downloaded(s3, folder / "export"), local)
    search.delete()


def test_the_quickstart_succeeds_and_says_what_the_winner_scores(quickstart: Quickstart) -> None:
    status = quickstart.status
    assert (status["stage"], status["candidates"]) == ("weights", f"{CANDIDATES}/{CANDIDATES}")
    assert status["exported"] == f"s3://{BUCKET}/quickstart/evollm-mini"
    conditions = {c["type"]: c["status"] for c in status["conditions"]}
    assert conditions == {"Accepted": "True", "Prepared": "True", "Progressing": "False", "Complete": "True"}
    rows = {row["name"]: row for row in status["conclusion"]["test"]}
    merged = {"winner", "plain average", "task arithmetic", "default DARE-TIES"}
    assert set(rows) == merged | {"arithmetic", "reader", "base"}
    assert all(row["interval"]["low"] <= row["score"] <= row["interval"]["high"] for row in rows.values())


def test_the_export_holds_the_winner_its_recipe_card_log_and_report(quickstart: Quickstart) -> None:
    assert {file.name for file in quickstart.export.iterdir() if file.is_file()} >= EXPORTED
    assert "<svg" in (quickstart.export / "report.html").read_text()
    assert yaml.safe_load((quickstart.export / "recipe.yaml").read_text())["merge_method"] == "linear"


def test_the_export_loaded_plainly_scores_what_the_status_says(quickstart: Quickstart) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(quickstart.export, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(quickstart.export)
    items = [json.loads(line) for line in (QUICKSTART / "data/test.jsonl").read_text().splitlines()]
    right = 0
    for item in items:
        prompt = tokenizer(item["prompt"], return_tensors="pt", return_token_type_ids=False)
        generated = model.generate(**prompt, max_new_tokens=4, do_sample=False)
        answer = tokenizer.decode(generated[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        right += answer == item["answer"]
    winner = next(row for row in quickstart.status["conclusion"]["test"] if row["role"] == "winner")
    assert winner["score"] == right / len(items)


def test_the_search_log_equals_that_of_the_same_manifest_run_locally(quickstart: Quickstart) -> None:
    in_cluster = identical_part((quickstart.export / "log.jsonl").read_text())
    here = identical_part((quickstart.local / "log.jsonl").read_text())
    assert len(here) == 1 + 6 + CANDIDATES
    assert in_cluster == here


def test_the_winner_equals_that_of_the_same_manifest_run_locally(quickstart: Quickstart) -> None:
    conclusion = json.loads((quickstart.local / "run.json").read_text())["conclusion"]
    assert quickstart.status["conclusion"] == conclusion
    weights = (quickstart.local / "best/model.safetensors").read_bytes()
    assert (quickstart.export / "model.safetensors").read_bytes() == weights


@pytest.fixture
def light_searches(
    cluster: Cluster, images: Images, installed: Release, s3: S3Server, secret: None
) -> Iterator[Callable[[str], Search]]:
    """Two candidates at a time for the installed operators, each a second long."""
    s3.make_bucket("searches")
    applied: list[Search] = []

    def apply(name: str) -> Search:
        settings = {"candidates": 16, "parallelism": 2, "faults": {"evaluate": "sleep:1"}}
        manifest = light_manifest(name, installed.namespace, images.light_worker, s3, **settings)
        applied.append(Search.apply(cluster, manifest))
        return applied[-1]

    yield apply
    for search in applied:
        search.delete()


def test_an_upgrade_of_the_chart_in_mid_search_changes_nothing_of_its_log(
    cluster: Cluster, installed: Release, light_searches: Callable[[str], Search], s3: S3Server
) -> None:
    undisturbed, disturbed = light_searches("undisturbed"), light_searches("upgraded")
    disturbed.wait(lambda status: status.get("done", 0) >= 2)
    before = _operators(cluster, installed)
    installed.upgrade({"worker": {"podTemplate": {"metadata": {"annotations": {"example.org/upgraded": "yes"}}}}})
    assert disturbed.status()["phase"] == "Searching"
    assert not before & _operators(cluster, installed)
    for search in (undisturbed, disturbed):
        assert search.succeeds()["candidates"] == "16/16"
    assert log_of(s3, disturbed) == log_of(s3, undisturbed)


def _operators(cluster: Cluster, release: Release) -> set[str]:
    """The operators' pods that are not on their way out."""
    pods = cluster.get("pods", f"--namespace={release.namespace}", "--selector=app.kubernetes.io/component=operator")
    return {p["metadata"]["name"] for p in pods["items"] if "deletionTimestamp" not in p["metadata"]}


def _run_here(file: Path, out: Path, s3: S3Server) -> Path:
    """`evomerge run`, as on a laptop; the run's directory."""
    command = [sys.executable, "-m", "evomerge_operator.cli", "run", str(file), "--out", str(out), "--workers", "1"]
    environment = {**os.environ, **s3.environment, "EVOMERGE_CACHE": str(out.parent / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def _downloaded(s3: S3Server, folder: Path) -> Path:
    client, prefix = s3.client(), "quickstart/evollm-mini/"
    folder.mkdir()
    for item in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]:
        name = item["Key"].removeprefix(prefix)
        if "/" not in name:
            client.download_file(BUCKET, item["Key"], str(folder / name))
    return folder
