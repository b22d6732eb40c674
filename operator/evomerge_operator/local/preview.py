"""`evomerge validate` and `evomerge plan`: what can be known without a search."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from evomerge_contract.manifest import EvoMerge, Stage
from evomerge_contract.report import PrepareResult
from evomerge_contract.text import seconds, size
from evomerge_operator.errors import RunError
from evomerge_operator.local.carry_out import carry_out, prepare
from evomerge_operator.local.executor import LocalExecutor
from evomerge_operator.local.workers import worker_environments
from evomerge_operator.plan.proposer import Proposer, Start, begin_stage
from evomerge_operator.plan.run import BASELINES, Key, Run, commits, default_names, make_run
from evomerge_operator.spaces import Space


def check(manifest: EvoMerge, source: str, folder: Path) -> list[str]:
    """Open models and data and find every mistake in them, and in the stages' spaces over them; say what models were
    found at the hub, and how large the spaces are.

    Raises:
        InputError: with all problems.
        RunError: the space does not fit the models.
    """
    with LocalExecutor(1, folder / "worker.log", worker_environments(1)) as executor:
        prepared = prepare(executor, manifest, source, folder)
        run, proposer = _begun(manifest, prepared, folder)
        spaces = spaces_of(run, proposer)
    return [*_pinned(prepared), *(f"stage {name}: {space.summary}" for name, space in spaces.items())]


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
    return plan_lines(run, spaces_of(run, proposer), prepared, workers, started, again.seconds["total"])


def spaces_of(run: Run, first: Proposer) -> dict[str, Space]:
    """The spaces of all stages by their names, over winners that are as deep as they can be.

    Raises:
        InputError: a stage does not fit the models, as far as can be said before its turn.
    """
    found: dict[str, Space] = {run.stage.name: first.space}
    prepared = run.prepared
    for number, stage in enumerate(run.manifest.spec.stages[1:], start=1):
        flow = prepared.layout.flow
        if flow is not None:
            before = run.manifest.spec.stages[number - 1].name
            layers = flow.layers | {before: found[before].deepest}
            layout = prepared.layout.model_copy(update={"flow": flow.model_copy(update={"layers": layers})})
            prepared = prepared.model_copy(update={"layout": layout})
        found[stage.name] = Proposer(run.common, number, prepared).space
    return found


def _deepest_bytes(spaces: Iterable[Space], prepared: PrepareResult) -> int:
    """Of the largest source, as deep as a candidate can be: somewhat too many where embeddings are large."""
    largest = max(prepared.sources, key=lambda source: source.bytes)
    flow = prepared.layout.flow
    layers = prepared.layout.layers if flow is None else flow.layers.get(largest.name, prepared.layout.layers)
    return round(largest.bytes * max(1.0, *(space.deepest / layers for space in spaces)))


def _begun(manifest: EvoMerge, prepared: PrepareResult, folder: Path) -> tuple[Run, Proposer]:
    run = make_run(manifest, prepared, folder.as_uri(), default_names(manifest, prepared))
    return run, begin_stage(run, len(run.stages))


def _start_of_average(run: Run, proposer: Proposer) -> Start:
    index = next((i for i, b in enumerate(run.baselines) if b.role == "average"), 0)  # or else the first source
    [start] = proposer.starts([Key(BASELINES, index)], {})
    return start


def plan_lines(
    run: Run, spaces: Mapping[str, Space], prepared: PrepareResult, workers: int, start_seconds: float, each: float
) -> list[str]:
    """What a run would do, where so many workers take `start_seconds` to begin and then `each` for a candidate."""
    stages = run.manifest.spec.stages
    total = start_seconds
    for stage in stages:
        total += each * stage.search.candidates / min(workers, stage.search.lag)
    total += each * len(run.baselines) / workers
    lines = [run.manifest.metadata.name]
    lines += [f"  pinned      {line}" for line in _pinned(prepared)]
    for model in prepared.sources:
        lines.append(f"  source      {model.name}: {model.parameters:,} parameters, {size(model.bytes)}, {model.dtype}")
    for name, splits in prepared.data.items():
        counts = ", ".join(f"{split} {found.items}" for split, found in splits.items())
        lines.append(f"  objective   {name}: {counts} items")
    lines.append(f"  baselines   {len(run.baselines)}, beside the first stage")
    for stage in stages:
        lines += _stage_lines(stage, spaces[stage.name], run.manifest.spec.parallelism)
    several = "; later stages may have deeper models, which take longer" if len(stages) > 1 else ""
    lines += [
        f"  to read     {size(sum(s.bytes for s in prepared.sources))} of weights, once a worker",
        f"  memory      about {size(_deepest_bytes(spaces.values(), prepared))} for the live model of each of "
        f"{workers} workers; sources are mapped and shared",
        f"  time        about {seconds(total)}: {seconds(start_seconds)} to begin, then {seconds(each)} a candidate "
        f"(measured on the plain average with one worker) on {workers} workers{several}",
    ]
    return lines


def _stage_lines(stage: Stage, space: Space, parallelism: int) -> list[str]:
    search = stage.search
    lines = [
        f"  stage       {stage.name}: {stage.space.method}",
        f"  space       {space.summary}",
        f"  search      {search.algorithm}, {search.candidates} candidates, seed {search.seed}, lag {search.lag}",
    ]
    if parallelism > search.lag:
        lines.append(f"  note        parallelism {parallelism} is above lag {search.lag}: the rest idles")
    return lines
