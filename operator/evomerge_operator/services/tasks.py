"""The tasks of candidates and of the steps that are none, and where a cluster's run keeps its reports."""

from collections.abc import Mapping, Sequence

from evomerge_contract.candidate import Candidate, Genome
from evomerge_contract.status import CandidateSpec, CandidateStatus
from evomerge_contract.task import Task
from evomerge_operator.errors import RunError
from evomerge_operator.kube.candidates import finished_candidate, genome_in
from evomerge_operator.kube.gateway import Gateway
from evomerge_operator.kube.objects import Parent
from evomerge_operator.plan.finish import scored_baselines
from evomerge_operator.plan.proposer import Start
from evomerge_operator.plan.run import Key, prepare_task
from evomerge_operator.planning import calls
from evomerge_operator.planning.pool import Pool
from evomerge_operator.services.decide import CONCLUDE, PREPARE, SELECT
from evomerge_operator.services.known import Known
from evomerge_operator.services.live_run import LiveRun

FACTS = "/facts"
"""Where the pod of an export finds the run report."""


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
    """The task of prepare, select, conclude or export.

    Raises:
        RunError: something that should come before it is not there (the caller's mistake).
        PlanningError: making it takes too much.
        KubeError: the candidates that it is about could not be read.
    """
    manifest, live = known.manifest, known.live
    if manifest is None or manifest.spec.export is None:
        raise RunError("there is no manifest to run")
    if step == PREPARE:
        return prepare_task(manifest, report_dir(manifest.spec.export.uri, known.parent), known.prepared)
    if live is None:
        raise RunError(f"{step} comes after the search")
    if step not in live.step_tasks:
        live.step_tasks[step] = await _task_after_search(known, live, step, gateway, pool, manifest.spec.export.uri)
    return live.step_tasks[step]


async def _task_after_search(known: Known, live: LiveRun, step: str, gateway: Gateway, pool: Pool, out: str) -> Task:
    caller, proposer = known.parent.uid, live.proposer
    if step in (SELECT, CONCLUDE):
        indices = await pool.call(caller, calls.ranked, proposer, live.run.stage.progress.results)
        chosen = await stored_candidates(known, live, indices, gateway)
        if step == SELECT:
            return await pool.call(caller, calls.select_task, proposer, chosen)
        selected, compared = known.status.selected, scored_baselines(live.run)
        return await pool.call(caller, calls.conclude_task, proposer, chosen, selected, compared)
    conclusion = known.status.conclusion
    if conclusion is None:
        raise RunError(f"{step} comes after the conclusion")
    [winner] = await stored_candidates(known, live, [conclusion.winner], gateway)
    return await pool.call(caller, calls.export_task, proposer, winner, conclusion, out, FACTS)


async def stored_candidates(known: Known, live: LiveRun, indices: Sequence[int], gateway: Gateway) -> list[Candidate]:
    """Finished candidates of the run's stage, with their genomes."""
    found = []
    for index in indices:
        document = await gateway.candidate(known.parent, live.run.stage.name, index)
        spec = CandidateSpec.model_validate(document["spec"])
        status = CandidateStatus.model_validate(document.get("status") or {})
        candidate = finished_candidate(spec, status, genome_in(spec), None)
        if candidate is None:
            raise RunError(f"candidate {index} is not finished any more; somebody has changed it")
        found.append(candidate)
    return found
