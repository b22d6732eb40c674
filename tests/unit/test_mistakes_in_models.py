"""Mistakes that a worker finds in models and data read the same from `evomerge validate` and from kubectl."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge_contract.base import canonical_json
from evomerge_contract.manifest import EvoMerge
from evomerge_contract.problems import in_words
from evomerge_operator.errors import InputError
from evomerge_operator.local.carry_out import error_of
from evomerge_operator.manifest import load_manifest
from evomerge_operator.plan.run import prepare_task
from evomerge_worker.pipeline import Pipeline
from evomerge_worker.process.session import carry_out
from kube_documents import Document, evomerge
from one_look import message_of, reported
from prepare_tasks import GOOD
from tiny_models import Tiny


@pytest.mark.parametrize(
    ("break_", "fields", "words"),
    [
        (lambda folder: (folder / "b/config.json").unlink(), ["spec.models[1].uri"], "config.json"),
        (
            lambda folder: (folder / "a/model.safetensors").write_bytes(b"torn"),
            ["spec.models[0].uri"],
            "model.safetensors",
        ),
        (
            lambda folder: write(folder / "select.jsonl", [{"prompt": "1 + 1 ="}, {"prompt": 2, "answer": "3"}]),
            ["spec.evaluation.objectives[0].jsonl.select"] * 2,
            "line 2",
        ),
        (
            lambda folder: shutil.copy(folder / "search.jsonl", folder / "test.jsonl"),
            ["spec.evaluation.objectives[0].jsonl.test"],
            "also in the search split",
        ),
    ],
    ids=["no-config", "torn-shard", "wrong-items", "shared-items"],
)
def test_a_mistake_in_models_and_data_reads_the_same(
    break_: Callable[[Path], object], fields: list[str], words: str, tiny: Tiny, tmp_path: Path
) -> None:
    made = evomerge()
    manifest = local(made, tiny, tmp_path)
    break_(tmp_path)
    report = carry_out(Pipeline(tmp_path / "cache"), prepare_task(manifest, tmp_path.as_uri()))
    error = error_of(report, "preparing the sources", manifest)
    assert isinstance(error, InputError)
    assert [problem.path for problem in error.problems] == fields
    assert words in in_words(error.problems)
    assert message_of(reported(made, report)) == in_words(error.problems)


def local(made: Document, tiny: Tiny, folder: Path) -> EvoMerge:
    """The same manifest over models and data in a folder."""
    plain = json.loads(canonical_json({key: made[key] for key in ("apiVersion", "kind", "spec")}))
    for model in plain["spec"]["models"]:
        shutil.copytree(tiny(seed=len(model["uri"])), folder / model["name"])
        model["uri"] = model["name"]
    (objective,) = plain["spec"]["evaluation"]["objectives"]
    objective["jsonl"] = {split: f"{split}.jsonl" for split in GOOD}
    for split, lines in GOOD.items():
        write(folder / f"{split}.jsonl", lines)
    (folder / "manifest.yaml").write_text(yaml.safe_dump(plain | {"metadata": {"name": "tiny"}}))
    return load_manifest(folder / "manifest.yaml")


def write(file: Path, lines: Sequence[Any]) -> None:
    file.write_text("\n".join(json.dumps(line) for line in lines))
