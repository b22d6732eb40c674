"""The tasks of candidates and of the steps that are none, and where a cluster's run keeps its reports."""

from collections.abc import Mapping, Sequence

from evomerge_contract.candidate import Candidate, Genome
from evomerge_contract.problems import in_words
from evomerge_contract.status import CandidateSpec, CandidateStatus
from evomerge_contract.task import Source, Task
from evomerge_operator.errors import RunError
from evomerge_operator.kube.candidates import finished_candidate, genome_in
from evomerge_operator.kube.gateway import Gateway
from evomerge_operator.kube.objects import Parent
from evomerge_operator.plan.finish import best_stage, scored_baselines
from evomerge_operator.plan.proposer import Start
from evomerge_operator.plan.run import Key, Run, StageRun, prepare_task
from evomerge_operator.planning import calls
from evomerge_operator.planning.pool import Pool
from evomerge_operator.recipes import Seeded
from evomerge_operator.services.decide import CONCLUDE, PREPARE, SELECT, WRITE
from evomerge_operator.services.known import Known
from evomerge_operator.services.live_run import LiveRun

FACTS = "/facts"
"""Where the pod of an export finds the run report."""


def winners(known: Known) -> list[Source]:
    """The winners of stages that are over, as sources."""
    return [Source(name=stage.name, uri=stage.uri, digest=stage.digest) for stage in known.status.stages]


def report_dir(export_uri: str, parent: Parent) -> str:
    """Where a run's durable reports lie; another run of the same name, or place, never finds them."""
    return f"{export_uri.rstrip('/')}/reports/{parent.uid}"


async def candidate_starts(
    live: LiveRun, keys: Sequence[Key], pool: Pool, caller: str, finished: Mapping[int, Genome] | None = None
) -> list[Start]:
    """These candidates as tasks; new ones are asked for, in the order of their indices.

    `finished` has the genomes of those that are finished.

    Raises:
        PlanningError: that takes too much.
    """
    missing = [key for key in keys if key not in live.starts]
    if missing:
        progress = live.run.stage.progress
        untold = list(progress.untold)
        genomes = progress.genomes | dict(finished or {})
        live.proposer, made = await pool.call(caller, calls.starts, live.proposer, untold, missing, genomes)
        del progress.untold[: len(untold)]
        for start in made:
            live.starts[start.key] = start
            if start.genome is not None and start.key.index not in progress.finished:
                progress.ask(start.key.index, start.genome)
    return [live.starts[key] for key in keys]


async def step_tasks(known: Known, step: str, gateway: Gateway, pool: Pool) -> list[Task]:
    """The tasks that a Job of a step may have had: prepare's changes once there is a result to compare with."""
    task = await step_task(known, step, gateway, pool)
    if step == PREPARE and known.prepared is not None and known.manifest is not None and known.manifest.spec.export:
        return [task, prepare_task(known.manifest, report_dir(known.manifest.spec.export.uri, known.parent))]
    return [task]


async def step_task(known: Known, step: str, gateway: Gateway, pool: Pool) -> Task:
    """The task of prepare, select, write, conclude or export.

    Raises:
        RunError: something that should come before it is not there (the caller's mistake).
        PlanningError: making it takes too much.
        KubeError: the candidates that it is about could not be read.
    """
    manifest, live = known.manifest, known.live
    if manifest is None or manifest.spec.export is None:
        raise RunError("there is no manifest to run")
    if step == PREPARE:
        before = known.prepared if live is None else live.run.stage.prepared
        return prepare_task(manifest, report_dir(manifest.spec.export.uri, known.parent), before, winners(known))
    if live is None:
        raise RunError(f"{step} comes after the search")
    if step not in live.step_tasks:
        live.step_tasks[step] = await _task_after_search(known, live, step, gateway, pool, manifest.spec.export.uri)
    return live.step_tasks[step]


async def _task_after_search(known: Known, live: LiveRun, step: str, gateway: Gateway, pool: Pool, out: str) -> Task:
    caller, run, selected = known.parent.uid, live.run, known.status.selected
    if step == WRITE and selected is not None:
        [winner] = await stored_candidates(known, run.stage, [selected.ranked[0].index], gateway)
        folder = f"{run.report_dir}/stages/{run.stage.name}"
        return await pool.call(caller, calls.stage_winner_task, live.proposer, selected, winner, folder)
    if step == SELECT:
        chosen = await _finalists(known, run.stage, live.proposer, gateway, pool)
        return await pool.call(caller, calls.select_task, live.proposer, chosen)
    stage, proposer = await _winning(known, live, pool)
    if step == CONCLUDE:
        chosen = await _finalists(known, stage, proposer, gateway, pool)
        ranked = stage.selected or selected
        return await pool.call(caller, calls.conclude_task, proposer, chosen, ranked, scored_baselines(run))
    conclusion = known.status.conclusion
    if conclusion is None:
        raise RunError(f"{step} comes after the conclusion")
    [winner] = await stored_candidates(known, stage, [conclusion.winner], gateway)
    drop = [source.uri for source in winners(known)]
    earlier = await _earlier_recipes(known, run, stage, gateway, pool)
    return await pool.call(caller, calls.export_task, proposer, winner, conclusion, out, FACTS, drop, earlier)


async def _earlier_recipes(known: Known, run: Run, until: StageRun, gateway: Gateway, pool: Pool) -> dict[str, Seeded]:
    """The recipes of the winners of the stages before one, by the stages' names."""
    found = {}
    for number, stage in enumerate(run.stages[: run.stages.index(until)]):
        if stage.selected is None:
            continue
        proposer = await _proposer_of(known, run, number, pool)
        [winner] = await stored_candidates(known, stage, [stage.selected.ranked[0].index], gateway)
        recipe = await pool.call(known.parent.uid, calls.stage_winner_recipe, proposer, stage.selected, winner)
        found[stage.name] = recipe
    return found


async def _winning(known: Known, live: LiveRun, pool: Pool) -> tuple[StageRun, bytes]:
    """The stage that the run's winner is of, and a proposer of it."""
    run = live.run
    if len(run.manifest.spec.stages) == 1:
        return run.stage, live.proposer
    number = best_stage(run)
    return run.stages[number], await _proposer_of(known, run, number, pool)


async def _proposer_of(known: Known, run: Run, number: int, pool: Pool) -> bytes:
    """A proposer of a stage that was begun before, for its recipes."""
    begun = await pool.call(known.parent.uid, calls.begin_next, run.common, number, run.stages[number].prepared)
    if isinstance(begun, list):
        raise RunError(f"stage {run.stages[number].name} cannot be gone back to: {in_words(begun)}")
    return begun[1]


async def _finalists(known: Known, stage: StageRun, proposer: bytes, gateway: Gateway, pool: Pool) -> list[Candidate]:
    indices = await pool.call(known.parent.uid, calls.ranked, proposer, stage.progress.results)
    return await stored_candidates(known, stage, indices, gateway)


async def stored_candidates(known: Known, stage: StageRun, indices: Sequence[int], gateway: Gateway) -> list[Candidate]:
    """Finished candidates of a stage, with their genomes."""
    found = []
    for index in indices:
        document = await gateway.candidate(known.parent, stage.name, index)
        spec = CandidateSpec.model_validate(document["spec"])
        status = CandidateStatus.model_validate(document.get("status") or {})
        candidate = finished_candidate(spec, status, genome_in(spec), None)
        if candidate is None:
            raise RunError(f"candidate {index} is not finished any more; somebody has changed it")
        found.append(candidate)
    return found
