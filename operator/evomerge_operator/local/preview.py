"""`evomerge validate` and `evomerge plan`: what can be known without a search."""

import time
from pathlib import Path

from evomerge_contract.manifest import EvoMerge
from evomerge_contract.report import PrepareResult
from evomerge_contract.text import seconds, size
from evomerge_operator.errors import RunError
from evomerge_operator.local.carry_out import carry_out, prepare
from evomerge_operator.local.executor import LocalExecutor
from evomerge_operator.local.workers import worker_environments
from evomerge_operator.plan.proposer import Proposer, Start, begin_stage
from evomerge_operator.plan.run import BASELINES, Key, Run, commits, default_names, make_run


def check(manifest: EvoMerge, source: str, folder: Path) -> list[str]:
    """Open models and data and find every mistake in them, and in the space over them; say what models were found at
    the hub.

    Raises:
        InputError: with all problems.
        RunError: the space does not fit the models.
    """
    with LocalExecutor(1, folder / "worker.log", worker_environments(1)) as executor:
        prepared = prepare(executor, manifest, source, folder)
        _begun(manifest, prepared, folder)
    return _pinned(prepared)


def _pinned(prepared: PrepareResult) -> list[str]:
    return [f"{asked} is now {found}" for asked, found in commits(prepared).items()]


def preview(manifest: EvoMerge, source: str, workers: int, folder: Path) -> list[str]:
    """What a run would do, line by line; the plain average is evaluated once to measure the time."""
    with LocalExecutor(1, folder / "worker.log", worker_environments(1)) as executor:
        began = time.monotonic()
        prepared = prepare(executor, manifest, source, folder)
        run, proposer = _begun(manifest, prepared, folder)
        average = _start_of_average(run, proposer)
        first = carry_out(executor, average.task)
        started = time.monotonic() - began
        if first.evaluate is None:
            raise RunError(f"the plain average could not be evaluated: {first.message} ({first.reason})")
        # The first task also opens models and warms caches; a second, on another split, is what each candidate costs.
        again = carry_out(executor, average.task.model_copy(update={"mask_seed": average.task.mask_seed + 1}))
    return _lines(run, prepared, workers, started, again.seconds["total"])


def _begun(manifest: EvoMerge, prepared: PrepareResult, folder: Path) -> tuple[Run, Proposer]:
    run = make_run(manifest, prepared, folder.as_uri(), default_names(manifest))
    return run, begin_stage(run, len(run.stages))


def _start_of_average(run: Run, proposer: Proposer) -> Start:
    index = next(i for i, b in enumerate(run.baselines) if b.role == "average")
    [start] = proposer.starts([Key(BASELINES, index)], {})
    return start


def _lines(run: Run, prepared: PrepareResult, workers: int, start_seconds: float, each: float) -> list[str]:
    spec, stage = run.manifest.spec, run.stage.stage
    groups = list(dict.fromkeys(gene.group for gene in run.stage.genes))
    busy = min(workers, stage.search.lag)
    total = start_seconds + each * (stage.search.candidates + len(run.baselines)) / busy
    lines = [f"{run.manifest.metadata.name}: stage {stage.name}, {stage.space.method}"]
    lines += [f"  pinned      {line}" for line in _pinned(prepared)]
    for model in prepared.sources:
        lines.append(f"  source      {model.name}: {model.parameters:,} parameters, {size(model.bytes)}, {model.dtype}")
    for name, splits in prepared.data.items():
        counts = ", ".join(f"{split} {found.items}" for split, found in splits.items())
        lines.append(f"  objective   {name}: {counts} items")
    shown = ", ".join(groups[:12]) + (", …" if len(groups) > 12 else "")
    lines += [
        f"  space       {len(run.stage.genes)} dimensions over {len(groups)} groups: {shown}",
        f"  search      {stage.search.algorithm}, {stage.search.candidates} candidates and "
        f"{len(run.baselines)} baselines, seed {stage.search.seed}, lag {stage.search.lag}",
        f"  to read     {size(sum(s.bytes for s in prepared.sources))} of weights, once a worker",
        f"  memory      about {size(max(s.bytes for s in prepared.sources))} for the live model of each of "
        f"{workers} workers; sources are mapped and shared",
        f"  time        about {seconds(total)}: {seconds(start_seconds)} to begin, then {seconds(each)} a candidate "
        f"(measured on the plain average with one worker) on {busy} workers",
    ]
    if spec.parallelism > stage.search.lag:
        lines.append(f"  note        parallelism {spec.parallelism} is above lag {stage.search.lag}: the rest idles")
    return lines
