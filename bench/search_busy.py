"""search.busy: the share of slot time in use while candidates' durations are spread over 4 to 1.

The real planner, search, log and local executor; only the workers are light: they sleep for 0.1 to 0.4 s, so that
two cores are enough for eight slots. In use is the time slept, not the time a slot holds a task: what planning and
pipes cost counts as idle, and so does the end, when nothing is left to start. `ceiling` is what that end alone leaves:
the share of a scheduler that starts candidates in order at no cost and never waits for an outcome.
"""

import argparse
import heapq
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

from figures import figure

from evomerge_contract.manifest import EvoMerge
from evomerge_contract.report import Layout, PreparedSource, PreparedSplit, PrepareResult
from evomerge_contract.task import EvaluateTask
from evomerge_operator.local.directory import RunDirectory
from evomerge_operator.local.executor import LocalExecutor
from evomerge_operator.local.log import RunLog
from evomerge_operator.local.search import search
from evomerge_operator.manifest import load_manifest
from evomerge_operator.plan.proposer import Proposer, begin_stage
from evomerge_operator.plan.run import BASELINES, Key, Run, default_names, make_run

HERE = Path(__file__).parent
SHORTEST = 0.1
DIGEST = "sha256:" + "0" * 64


class Silent:
    """A watcher that shows nothing."""

    def searching(self, run: Run) -> None: ...

    def moved(self, run: Run, running: int) -> None: ...


def main() -> None:
    """Measure each algorithm with 4 and 8 slots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    settings = [(algorithm, slots) for algorithm in ("GA", "CMA-ES") for slots in (4, 8)]
    shares: dict[tuple[str, int], list[tuple[float, float]]] = {setting: [] for setting in settings}
    for repeat in range(options.repeats):
        for algorithm, slots in settings:
            shares[algorithm, slots].append(share_in_use(algorithm, slots, options.candidates, seed=repeat))
    for (algorithm, slots), values in shares.items():
        figure(
            "search_busy",
            f"search.busy.{algorithm}.{slots}",
            [share for share, _ in values],
            "share of slot time",
            reference=f"{slots} slots in use from the first start to the last end",
            goal=">= 0.95",
            candidates=options.candidates,
            lag=16,
            ceiling=[round(ceiling, 4) for _, ceiling in values],
        )


def share_in_use(algorithm: str, slots: int, candidates: int, seed: int) -> tuple[float, float]:
    """Run one search and return seconds slept / (slots x seconds it took), and the same for the ideal scheduler."""
    manifest = _manifest(algorithm, candidates, seed)
    command = [sys.executable, str(HERE / "sleeping_worker.py"), str(SHORTEST), str(seed)]
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder) / "run")
        directory.claim()
        prepared = _prepared(manifest)
        names = default_names(manifest, prepared)
        run = make_run(manifest, prepared, directory.reports.as_uri(), names)
        proposer = begin_stage(run, 0)
        log = RunLog(directory.log, {}, names)
        with LocalExecutor(slots, directory.worker_log, command=command) as executor:
            _warm_up(executor, proposer)
            began = time.perf_counter()
            search(executor, run, proposer, log, deque(), Silent())
            took = time.perf_counter() - began
        log.close()
        directory.release()
    sequences = (run.compared.finished, run.stage.progress.finished)
    slept = [finished[index].seconds["evaluate"] for finished in sequences for index in sorted(finished)]
    return sum(slept) / (slots * took), sum(slept) / (slots * ideal_seconds(slept, slots))


def ideal_seconds(durations: list[float], slots: int) -> float:
    """How long tasks take that are started in order, each as soon as a slot is free."""
    free_at = [0.0] * slots
    for duration in durations:
        heapq.heapreplace(free_at, free_at[0] + duration)
    return max(free_at)


def _warm_up(executor: LocalExecutor, proposer: Proposer) -> None:
    """A first task for each slot, so that no start of a process is measured."""
    [start] = proposer.starts([Key(BASELINES, 0)], {})
    waiting = executor.idle
    for _ in range(waiting):
        executor.start(EvaluateTask.model_validate(start.task.model_copy(update={"trace": None})))
    while waiting:
        waiting -= len(executor.wait())


def _manifest(algorithm: str, candidates: int, seed: int) -> EvoMerge:
    """The quickstart's, with another search."""
    manifest = load_manifest(HERE.parent / "examples" / "quickstart" / "evomerge.yaml").wire()
    manifest["spec"]["stages"][0]["search"] = {
        "algorithm": algorithm,
        "candidates": candidates,
        "seed": seed,
        "lag": 16,
    }
    return EvoMerge.model_validate(manifest)


def _prepared(manifest: EvoMerge) -> PrepareResult:
    """What prepare would say: nobody opens the models here."""
    names = [m.name for m in manifest.spec.models] + ["base"]
    split = PreparedSplit(digest=DIGEST, items=500)
    layout = Layout(
        layer_prefix="model.layers.",
        layers=6,
        layer_tensors=["input_layernorm.weight", "mlp.down_proj.weight", "self_attn.q_proj.weight"],
        before=["model.embed_tokens.weight"],
        after=["lm_head.weight", "model.norm.weight"],
    )
    return PrepareResult(
        sources=[PreparedSource(name=n, digest=DIGEST, bytes=1, dtype="bfloat16", parameters=1) for n in names],
        layout=layout,
        data={o.name: {"search": split, "select": split, "test": split} for o in manifest.spec.evaluation.objectives},
    )


if __name__ == "__main__":
    main()
