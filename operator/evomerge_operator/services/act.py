"""Starting: MergeCandidates in the order of their indices, then their Jobs."""

import base64
import gzip
from collections.abc import Sequence

from evomerge_contract.base import canonical_json
from evomerge_contract.candidate import AskedFields, fields_of
from evomerge_contract.genome import genome_text
from evomerge_contract.status import CandidateSpec, CandidateStatus
from evomerge_contract.task import ExportTask, Task
from evomerge_operator.kube.candidates import candidate_document, finished_candidate
from evomerge_operator.kube.gateway import Gateway
from evomerge_operator.kube.jobs import Attempt, Defaults, facts_config_map, make_job, tasks_config_map, tasks_text
from evomerge_operator.plan.finish import run_report
from evomerge_operator.plan.proposer import Start
from evomerge_operator.plan.run import BASELINES, Key, Run
from evomerge_operator.plan.settle import asked
from evomerge_operator.planning import calls
from evomerge_operator.planning.pool import Pool
from evomerge_operator.services.known import Known
from evomerge_operator.services.live_run import LiveRun
from evomerge_operator.services.settle import together
from evomerge_operator.services.tasks import candidate_starts, step_task

_PART_BYTES = 700_000
"""Of a ConfigMap's binary content: base64 makes it a third longer, and the store takes 1.5 MB."""


async def start_candidates(
    known: Known,
    live: LiveRun,
    batches: Sequence[Sequence[Key]],
    gateway: Gateway,
    defaults: Defaults,
    pool: Pool,
) -> None:
    """Store every genome that was asked for, without a hole, before any Job of them begins.

    Raises:
        PlanningError: asking for them takes too much.
        KubeError: not all could be stored, or not all Jobs be created.
    """
    starts = await candidate_starts(live, [key for batch in batches for key in batch], pool, known.parent.uid)
    for start in starts:
        if start.key not in live.open:
            await _store(known, live, start, gateway)
    tasks = {start.key: start.task for start in starts}
    # One that was stored before a crash may be finished by now.
    ready = [batch for batch in batches if all(key in live.open for key in batch)]
    jobs = [(_attempt(live, batch), [tasks[key] for key in batch]) for batch in ready]
    await together(start_job(known, attempt, its, gateway, defaults) for attempt, its in jobs)


async def _store(known: Known, live: LiveRun, start: Start, gateway: Gateway) -> None:
    spec = candidate_spec(live.run, start)
    document = await gateway.create_candidate(candidate_document(known.parent, spec), known.parent)
    status = CandidateStatus.model_validate(document.get("status") or {})
    finished = finished_candidate(spec, status, start.genome, start.task.recipe if start.genome is None else None)
    live.saw(start.key, document, status, finished)


async def start_step(known: Known, step: str, gateway: Gateway, defaults: Defaults, pool: Pool) -> None:
    """Start the next attempt at prepare, select, write, conclude or export."""
    attempt = Attempt(step=step, kind=step, indices=(), attempts=(known.ended_attempts(step) + 1,))
    task = await step_task(known, step, gateway, pool)
    facts = await _facts(known, task, gateway, pool) if isinstance(task, ExportTask) and task.facts else []
    await start_job(known, attempt, [task], gateway, defaults, facts)


async def start_job(
    known: Known,
    attempt: Attempt,
    tasks: Sequence[Task],
    gateway: Gateway,
    defaults: Defaults,
    facts: Sequence[str] = (),
) -> None:
    """Create an attempt's Job, and before it the ConfigMap of tasks that are too long for an annotation."""
    if known.manifest is None:
        return
    config_map = tasks_config_map(known.parent, attempt, tasks_text(tasks))
    if config_map is not None:
        await gateway.create_config_map(config_map, known.parent)
    spec = known.manifest.spec
    stage = known.live.run.stage.stage if known.live is not None and attempt.step != BASELINES else None
    worker = spec.worker if stage is None else spec.worker_of(stage)
    spec = spec.model_copy(update={"worker": worker})
    job = make_job(known.parent, spec, attempt, tasks, defaults, facts)
    known.saw_job(await gateway.create_job(job, known.parent), deleted=False)


def _attempt(live: LiveRun, batch: Sequence[Key]) -> Attempt:
    return Attempt(
        step=batch[0].stage,
        kind="evaluate",
        indices=tuple(key.index for key in batch),
        attempts=tuple(live.open[key].ended_attempts + 1 for key in batch),
    )


def candidate_spec(run: Run, start: Start) -> CandidateSpec:
    """What a MergeCandidate says of a candidate that is asked for."""
    genome = genome_text(start.genome) if start.genome is not None else None
    return CandidateSpec(**fields_of(asked(run, start), AskedFields), genome=genome)


async def _facts(known: Known, task: ExportTask, gateway: Gateway, pool: Pool) -> list[str]:
    """The run report, for the export's log and page, as ConfigMaps; their names."""
    if known.live is None:
        return []
    packed = b"".join(await _packed(known, known.live, task, gateway, pool))
    names = []
    for number, begin in enumerate(range(0, len(packed), _PART_BYTES)):
        part = base64.b64encode(packed[begin : begin + _PART_BYTES]).decode()
        config_map = facts_config_map(known.parent, number, part)
        await gateway.create_config_map(config_map, known.parent)
        names.append(config_map["metadata"]["name"])
    return names


async def _packed(known: Known, live: LiveRun, task: ExportTask, gateway: Gateway, pool: Pool) -> list[bytes]:
    """The run report as gzip members of its JSON; the candidates are collected from where they lie, page by page."""
    wire = run_report(live.run, [], known.status.conclusion, task.recipe).wire()
    del wire["candidates"]
    members = [gzip.compress(f'{canonical_json(wire)[:-1]},"candidates":['.encode(), mtime=0)]
    collected = 0
    for stage in live.run.stages:
        following, first = "", True
        while following or first:
            page = await gateway.candidate_page(known.parent, following, stage=stage.name)
            member, count, following = await pool.call(known.parent.uid, calls.facts_part, page, collected > 0)
            members.append(member)
            collected, first = collected + count, False
    return [*members, gzip.compress(b"]}", mtime=0)]
