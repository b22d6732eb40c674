"""What share of a candidate's time is the pipeline's own: all but merging arithmetic and the model's forward.

After a session's first task, over genomes of the quickstart, and over a random pair of 0.5 B parameters. A candidate
is what a session does from a task's line to its report's line: reading the task, planning, merging, generating,
scoring, the durable report. Arithmetic is the merge without its plan.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

os.environ |= {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}

from figures import figure
from random_models import QUICKSTART, large_quickstart

from evomerge_contract.manifest import EvoMerge
from evomerge_contract.report import Report
from evomerge_contract.task import EvaluateTask, task_adapter
from evomerge_operator.manifest import load_manifest
from evomerge_operator.plan.proposer import begin_stage
from evomerge_operator.plan.run import Key, default_names, make_run, prepare_task
from evomerge_worker.evaluate.clock import forward_time
from evomerge_worker.families import live
from evomerge_worker.merge import plan_merge
from evomerge_worker.pipeline import Pipeline
from evomerge_worker.process.session import carry_out

LARGE_ITEMS = 50


class Candidate(NamedTuple):
    """Seconds of one candidate."""

    total: float
    arithmetic: float
    forward: float
    planning: float  # of the merge; counts as the pipeline's own

    @property
    def own(self) -> float:
        """The pipeline's own share."""
        return 1 - (self.arithmetic + self.forward) / self.total


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=30)
    parser.add_argument("--large-candidates", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="evomerge-bench-") as folder:
        shipped = drawn_at_random(load_manifest(QUICKSTART / "evomerge.yaml"))
        report("quickstart", candidates_of(shipped, Path(folder) / "tiny", options.candidates), shipped)
        large = drawn_at_random(large_quickstart(Path(folder), LARGE_ITEMS))
        report("0.5b", candidates_of(large, Path(folder) / "large", options.large_candidates), large)


def report(name: str, candidates: list[Candidate], manifest: EvoMerge) -> None:
    """The figure, and where the time goes."""
    mean = Candidate(*(sum(column) / len(candidates) for column in zip(*candidates, strict=True)))
    figure(
        "pipeline_share",
        f"pipeline.own_share.{name}",
        [candidate.own for candidate in candidates],
        "share of a candidate's time",
        reference="merging arithmetic and the model's forward, of the same candidates",
        goal="<= 0.2",
        mean_seconds={key: round(value, 4) for key, value in mean._asdict().items()},
        batch_size=manifest.spec.evaluation.batch_size,
    )


def candidates_of(manifest: EvoMerge, folder: Path, count: int) -> list[Candidate]:
    """Carry out `count` different genomes in one session, after a first one that is not counted."""
    pipeline = Pipeline(folder / "cache")
    reports = folder / "reports"
    reports.mkdir(parents=True)
    prepared = pipeline.carry_out(prepare_task(manifest, reports.as_uri())).prepare
    if prepared is None:
        raise SystemExit("the models could not be prepared")
    run = make_run(manifest, prepared, reports.as_uri(), default_names(manifest, prepared))
    proposer = begin_stage(run, 0)
    keys = [Key(run.stage.name, index) for index in range(count + 1)]
    first, *others = [start.task for start in proposer.starts(keys, {})]
    one_candidate(pipeline, first)
    planning = Stopwatch(plan_merge)
    with patch.object(live, "plan_merge", planning):
        return [timed_candidate(pipeline, task, planning) for task in others]


def timed_candidate(pipeline: Pipeline, task: EvaluateTask, planning: "Stopwatch") -> Candidate:
    """One candidate, from line to line."""
    planning.seconds = 0.0
    model = pipeline._live.model  # type: ignore[union-attr]
    with forward_time(model) as forward:
        began = time.perf_counter()
        done = one_candidate(pipeline, task)
        total = time.perf_counter() - began
    arithmetic = done.seconds["merge"] - planning.seconds
    return Candidate(total, arithmetic, forward.seconds, planning.seconds)


def one_candidate(pipeline: Pipeline, task: EvaluateTask) -> Report:
    """What a session does with a line."""
    line = task.model_dump_json(exclude_none=True, by_alias=True).encode()
    report = carry_out(pipeline, task_adapter.validate_json(line))
    report.line()
    if report.outcome != "Succeeded":
        raise SystemExit(f"a candidate failed: {report.message}")
    return report


class Stopwatch:
    """A function, and the seconds spent in it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.seconds = 0.0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return self.function(*arguments, **named)
        finally:
            self.seconds += time.perf_counter() - began


def drawn_at_random(manifest: EvoMerge) -> EvoMerge:
    """The manifest with a search that knows its genomes before any outcome."""
    wire = manifest.wire()
    wire["spec"]["stages"][0]["search"] = {"algorithm": "Random", "candidates": 1000, "lag": 1000}
    return EvoMerge.model_validate(wire)


if __name__ == "__main__":
    main()
