"""Starting: MergeCandidates in the order of their indices, then their Jobs."""

import asyncio
import base64
import gzip
from collections.abc import Sequence

from evomerge_contract.base import canonical_json
from evomerge_contract.report import ConcludeResult
from evomerge_contract.status import CandidateSpec
from evomerge_contract.task import Task
from evomerge_operator import plan
from evomerge_operator.kube.candidates import candidate_document, genome_text
from evomerge_operator.kube.gateway import Gateway
from evomerge_operator.kube.jobs import Attempt, Defaults, facts_config_map, make_job, tasks_config_map, tasks_text
from evomerge_operator.plan import BASELINES, Start
from evomerge_operator.services.decide import EXPORT
from evomerge_operator.services.known import Known
from evomerge_operator.services.search import Search
from evomerge_operator.services.settle import together
from evomerge_operator.services.tasks import step_task

_PART_BYTES = 700_000
"""Of a ConfigMap's binary content: base64 makes it a third longer, and the store takes 1.5 MB."""


async def start_candidates(
    known: Known, search: Search, batches: Sequence[Sequence[Start]], gateway: Gateway, defaults: Defaults
) -> None:
    """Store every genome that was asked for, without a hole, before any Job of them begins."""
    for start in (start for batch in batches for start in batch):
        if start.key not in search.open:
            spec = candidate_spec(search, start)
            search.take(await gateway.create_candidate(candidate_document(known.parent, spec), known.parent))
    attempts = [_attempt(search, batch) for batch in batches]
    tasks = [[start.task for start in batch] for batch in batches]
    await together(start_job(known, a, t, gateway, defaults) for a, t in zip(attempts, tasks, strict=True))


async def start_step(known: Known, step: str, gateway: Gateway, defaults: Defaults) -> None:
    """Start the next attempt at prepare, conclude or export."""
    attempt = Attempt(step=step, kind=step, indices=(), attempts=(known.ended_attempts(step) + 1,))
    facts = await _facts(known, gateway) if step == EXPORT else []
    await start_job(known, attempt, [step_task(known, step)], gateway, defaults, facts)


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
    job = make_job(known.parent, known.manifest.spec, attempt, tasks, defaults, facts)
    known.saw_job(await gateway.create_job(job, known.parent), deleted=False)


def _attempt(search: Search, batch: Sequence[Start]) -> Attempt:
    return Attempt(
        step=batch[0].key.stage,
        kind="evaluate",
        indices=tuple(start.key.index for start in batch),
        attempts=tuple(search.open[start.key].ended_attempts + 1 for start in batch),
    )


def candidate_spec(search: Search, start: Start) -> CandidateSpec:
    """What a MergeCandidate says of a candidate that is asked for."""
    named = search.run.baselines[start.key.index] if start.key.stage == BASELINES else None
    return CandidateSpec(
        stage=start.key.stage,
        index=start.key.index,
        generation=0 if named else start.key.index // search.run.search.population,
        name=named.name if named else None,
        genome=genome_text(start.genome) if start.genome is not None else None,
        algorithm=search.run.search.version,
        recipe_digest=start.task.recipe.digest,
    )


async def _facts(known: Known, gateway: Gateway) -> list[str]:
    """The run report, for the export's log and page, as ConfigMaps; their names."""
    search, conclusion = known.search, known.status.conclusion
    if search is None or conclusion is None:
        return []
    packed = await asyncio.to_thread(_packed, search, conclusion)  # seconds for a long log, and the Lease must be kept
    names = []
    for number, begin in enumerate(range(0, len(packed), _PART_BYTES)):
        part = base64.b64encode(packed[begin : begin + _PART_BYTES]).decode()
        config_map = facts_config_map(known.parent, number, part)
        await gateway.create_config_map(config_map, known.parent)
        names.append(config_map["metadata"]["name"])
    return names


def _packed(search: Search, conclusion: ConcludeResult) -> bytes:
    recipe = plan.winner_recipe(search.run, search.finished, conclusion)
    report = plan.run_report(search.run, search.finished, conclusion, recipe)
    return gzip.compress(canonical_json(report.wire()).encode(), mtime=0)
