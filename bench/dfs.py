"""Candidates of a search of the order of layers, on the quickstart's models: what is not the model's forward, and how
the time of a generated token grows with the depth.

Paths are drawn at random: of three rows of all layers of both models each hop with a chance of a third, between the
donor's first and last layer, scales from 0.8 to 1.25.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[1:1] = [str(Path(__file__).parents[1] / "tests")]

import pipeline_share as share  # noqa: E402 - it sets torch's environment first
import torch  # noqa: E402
from figures import figure  # noqa: E402
from random_models import QUICKSTART  # noqa: E402

from evomerge_contract.recipe import Recipe  # noqa: E402
from evomerge_contract.report import Flow  # noqa: E402
from evomerge_contract.task import EvaluateTask  # noqa: E402
from evomerge_operator.manifest import load_manifest  # noqa: E402
from evomerge_operator.plan.proposer import begin_stage  # noqa: E402
from evomerge_operator.plan.run import Key, default_names, make_run, prepare_task  # noqa: E402
from evomerge_worker.evaluate.clock import forward_time  # noqa: E402
from evomerge_worker.pipeline import Pipeline  # noqa: E402
from flow_recipes import folded  # noqa: E402

ROWS, CHANCE = 3, 1 / 3
TOKENS, REPEATS = 16, 8
"""Of the repeats the quickest counts: others work on the machine too."""


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="evomerge-bench-") as folder:
        tasks = drawn(Path(folder), options.candidates + 1)
        pipeline = Pipeline(Path(folder) / "cache")
        share.one_candidate(pipeline, tasks[0])
        candidates = [timed(pipeline, task) for task in tasks[1:]]
    own = [1 - forward / total for total, forward, _ in candidates]
    depths = [len(task.recipe.slices or []) for task in tasks[1:]]
    figure("dfs", "dfs.own_share", own, "share of a candidate's time",
           reference="the model's forward, of the same candidates", goal="<= 0.2",
           seconds=round(statistics.mean(total for total, *_ in candidates), 4),
           depth=round(statistics.mean(depths), 1))  # fmt: skip
    seconds = [token for *_, token in candidates]
    slope, intercept = statistics.linear_regression(depths, seconds)
    apart = [abs(slope * depth + intercept - value) / value for depth, value in zip(depths, seconds, strict=True)]
    figure("dfs", "dfs.token_seconds", apart, "of a token's processor seconds, from a line over depth",
           reference="the line of least squares through the same candidates", goal="<= 0.1",
           milliseconds_per_layer=round(1e3 * slope, 4), milliseconds_without=round(1e3 * intercept, 4))  # fmt: skip


def drawn(folder: Path, count: int) -> list[EvaluateTask]:
    """Tasks of the quickstart whose recipes are random paths."""
    manifest = load_manifest(QUICKSTART / "evomerge.yaml")
    reports = folder / "reports"
    reports.mkdir()
    models = [model.name for model in manifest.spec.models]
    preparing = prepare_task(manifest, reports.as_uri()).model_copy(update={"flows": [models]})
    prepared = Pipeline(folder / "cache").carry_out(preparing).prepare
    if prepared is None or prepared.layout.flow is None:
        raise SystemExit("the models could not be prepared")
    run = make_run(manifest, prepared, reports.as_uri(), default_names(manifest, prepared))
    (start,) = begin_stage(run, 0).starts([Key(run.stage.name, 0)], {})
    randomly = random.Random(1)
    recipes = (path_of(prepared.layout.flow, models, randomly) for _ in range(count))
    return [start.task.model_copy(update={"recipe": recipe}) for recipe in recipes]


def path_of(flow: Flow, models: list[str], randomly: random.Random) -> Recipe:
    """The recipe of a random path."""
    donor = models[0]
    slots = [(model, layer) for _ in range(ROWS) for model in models for layer in range(flow.layers[model])]
    inner = [slot for slot in slots[1:-1] if randomly.random() < CHANCE]
    path = [(donor, 0), *inner, (donor, flow.layers[donor] - 1)]
    return folded(flow, path, [round(randomly.uniform(0.8, 1.25), 6) for _ in path])


def timed(pipeline: Pipeline, task: EvaluateTask) -> tuple[float, float, float]:
    """Seconds of a candidate, of the forward in it, and of one generated token of one item."""
    model = pipeline._live.model  # type: ignore[union-attr]
    with forward_time(model) as forward:
        began = time.perf_counter()
        share.one_candidate(pipeline, task)
        total = time.perf_counter() - began
    return total, forward.seconds, min(per_token(model) for _ in range(REPEATS))


def per_token(model: Any) -> float:
    """Seconds of the processor for one token of one item."""
    began = time.process_time()
    model.generate(torch.ones(1, 8, dtype=torch.long), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
    return (time.process_time() - began) / TOKENS


if __name__ == "__main__":
    main()
