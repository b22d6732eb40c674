"""Evaluators on a device give the scores that they give on a CPU, with the quickstart's trained models."""

import json
from pathlib import Path

import pytest
import torch

from evomerge_contract.manifest import Jsonl, MetricName, Objective
from evomerge_contract.report import ItemScore
from evomerge_worker.evaluate.items import load_items
from evomerge_worker.families import LiveModel
from evomerge_worker.shards import Checkpoint
from scoring import score_items

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
ITEMS = 200
_DIFFERING = ITEMS // 100
"""Where two tokens are almost equally likely, sums in another order may change which one is chosen."""


def scores(device: torch.device, metric: MetricName, file: Path, batch_size: int) -> list[ItemScore]:
    """The base's, in float32, so that rounding alone lies between two devices."""
    objective = Objective(
        name="o", jsonl=Jsonl(search=str(file), select="b", test="c"), metric=metric, max_new_tokens=4
    )
    checkpoint = Checkpoint.open(QUICKSTART / "models" / "base", "base")
    live = LiveModel.open(checkpoint, device=device, dtype=torch.float32)
    items = load_items(file, objective, "objectives.o.search")
    return score_items(live.model, live.tokenizer, objective, items, batch_size)


def written(folder: Path, metric: MetricName) -> Path:
    """The quickstart's items in the form that the metric wants; choices are the answers of the next three items too."""
    lines = (QUICKSTART / "data" / "search.jsonl").read_text(encoding="utf-8").splitlines()[: ITEMS + 3]
    asked = [json.loads(line) for line in lines]
    items = []
    for number, item in enumerate(asked[:ITEMS]):
        if metric == "exact_match":
            items.append(item)
        elif metric == "perplexity":
            items.append({"text": item["prompt"] + item["answer"]})
        else:
            choices = sorted({other["answer"] for other in asked[number : number + 4]})
            items.append({"prompt": item["prompt"], "choices": choices, "answer": choices.index(item["answer"])})
    file = folder / f"{metric}.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    return file


@pytest.mark.parametrize("batch_size", [7, 64])
@pytest.mark.parametrize("metric", ["exact_match", "acc", "acc_norm"])
def test_what_is_right_on_a_cpu_is_right_there(
    device: torch.device, tmp_path: Path, metric: MetricName, batch_size: int
) -> None:
    file = written(tmp_path, metric)
    there, here = scores(device, metric, file, batch_size), scores(torch.device("cpu"), metric, file, batch_size)
    assert 0.5 < sum(score.value for score in here) / ITEMS <= 1
    assert sum(a.value != b.value for a, b in zip(there, here, strict=True)) <= _DIFFERING


def test_perplexity_is_that_of_a_cpu(device: torch.device, tmp_path: Path) -> None:
    file = written(tmp_path, "perplexity")
    there, here = (scores(d, "perplexity", file, 64) for d in (device, torch.device("cpu")))
    assert [score.value for score in there] == pytest.approx([score.value for score in here], rel=1e-3, abs=1e-5)
