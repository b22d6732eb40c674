"""Settling: what an attempt's end means is stored in the MergeCandidate or the status, then its Job is deleted."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar, cast

from evomerge_contract.answers import failure
from evomerge_contract.base import canonical_json
from evomerge_contract.candidate import Candidate
from evomerge_contract.manifest import EvoMerge, EvoMergeSpec
from evomerge_contract.report import PrepareResult, Report
from evomerge_contract.status import CandidateStatus, StageStatus, StepCounters
from evomerge_contract.task import Task
from evomerge_operator.kube.candidates import finished_status
from evomerge_operator.kube.gateway import Gateway
from evomerge_operator.kube.jobs import digest_of_text
from evomerge_operator.kube.objects import DIGEST, Document
from evomerge_operator.kube.pods import JobView, PodView
from evomerge_operator.metrics import SECONDS
from evomerge_operator.plan.proposer import Start
from evomerge_operator.plan.run import BASELINES, Key, default_names
from evomerge_operator.plan.settle import settle
from evomerge_operator.planning.pool import Pool
from evomerge_operator.services.backoff import after
from evomerge_operator.services.decide import CONCLUDE, EXPORT, PREPARE, SELECT, STORAGE, WRITE
from evomerge_operator.services.ending import Disrupted, Ending, Failed, Reported, Waits, Wrong, ending_of, has_ended
from evomerge_operator.services.known import Known
from evomerge_operator.services.live_run import LiveRun
from evomerge_operator.services.status import write_step
from evomerge_operator.services.tasks import candidate_starts, step_tasks, stored_candidates

PROBE_SECONDS = 30
_LOSSES_AT_ONCE = 5
_LONGEST_PAUSE_SECONDS = 300.0
R = TypeVar("R")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Blocker:
    """What keeps the whole from going on: wrong input ends it, storage that is away makes it wait."""

    reason: str
    message: str


async def settle_attempts(known: Known, gateway: Gateway, pool: Pool, now: datetime) -> Blocker | None:
    """Settle every attempt that has ended, all at once; returns the gravest of what then blocks the whole.

    Raises:
        PlanningError: making the tasks that they answer takes too much.
    """
    endings: list[Ending] = []
    jobs = [job for job in known.jobs.values() if _can_settle(known, job, now)]
    starts = await _starts(known, gateway, pool, jobs)
    settling = [_settle_job(known, gateway, pool, job, now, starts, endings) for job in jobs]
    blockers = [blocker for blocker in await together(settling) if blocker is not None]
    _pause_after_losses(known, endings, now)
    return min(blockers, key=lambda b: b.reason == STORAGE, default=None)  # wrong input before storage


async def together(coroutines: Iterable[Awaitable[R]]) -> list[R]:
    """Their results; if some fail, one of the errors, once all have ended: no write goes on behind the next look."""
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast(list[R], results)


async def _starts(known: Known, gateway: Gateway, pool: Pool, jobs: Sequence[JobView]) -> dict[Key, Start]:
    """The candidates of Jobs as they were started, in one call for all."""
    live = known.live
    if live is None:
        return {}
    keys = [key for job in jobs if _is_unsettled(known, job) for key in _keys(job)]
    # Of one that was settled before a crash, while others of its pod were not, the genome was let go.
    settled = [key.index for key in keys if key not in live.open and key.stage != BASELINES]
    genomes = {c.index: c.genome for c in await stored_candidates(known, live.run.stage, settled, gateway) if c.genome}
    return {start.key: start for start in await candidate_starts(live, keys, pool, known.parent.uid, genomes)}


def _is_unsettled(known: Known, job: JobView) -> bool:
    """Whether a Job has candidates to settle."""
    return known.live is not None and not _lacks_candidate(known, job) and any(k in known.live.open for k in _keys(job))


def _keys(job: JobView) -> list[Key]:
    return [Key(job.attempt.step, index) for index in job.attempt.indices]


def _can_settle(known: Known, job: JobView, now: datetime) -> bool:
    if job.attempt.indices and known.live is None:
        return False
    ended = has_ended(job, known.pods.get(job.name), now, gone=job.name in known.gone)
    return ended or _lacks_candidate(known, job)


def _lacks_candidate(known: Known, job: JobView) -> bool:
    """Whether somebody has deleted a MergeCandidate of a Job: it is to be asked anew, and what the Job says is void."""
    live = known.live
    return live is not None and any(not live.has(key) for key in _keys(job))


async def _settle_job(
    known: Known,
    gateway: Gateway,
    pool: Pool,
    job: JobView,
    now: datetime,
    starts: Mapping[Key, Start],
    endings: list[Ending],
) -> Blocker | None:
    """Settle what a Job came to, and delete it; its ending is added to `endings`."""
    pod = known.pods.get(job.name)
    blocker = None
    if known.live is None or not job.attempt.indices:
        blocker = await _settle_step(known, gateway, pool, job, pod, now, endings)
    elif not _lacks_candidate(known, job):
        blocker = await _settle_candidates(known, known.live, gateway, job, pod, starts, endings)
    await end_job(known, gateway, job)
    return blocker


def _pause_after_losses(known: Known, endings: Sequence[Ending], now: datetime) -> None:
    """Start more slowly while look after look nothing but losses comes back: something is wrong with the nodes."""
    lost = [ending for ending in endings if isinstance(ending, Disrupted)]
    if len(lost) < len(endings):
        known.losses = 0
    elif lost:
        known.losses += 1
        known.last_loss = lost[-1].message
        if known.losses > _LOSSES_AT_ONCE:
            known.starts_at = now + after(known.losses, _LOSSES_AT_ONCE, _LONGEST_PAUSE_SECONDS)


async def end_job(known: Known, gateway: Gateway, job: JobView) -> None:
    """Delete a Job with what it brought along, once nothing of it is needed any more."""
    for name in job.config_maps:
        await gateway.delete_config_map(known.parent.namespace, name)
    await gateway.delete_job(known.parent.namespace, job.name, job.uid)
    known.drop_job(job.name)


async def _settle_candidates(
    known: Known,
    live: LiveRun,
    gateway: Gateway,
    job: JobView,
    pod: PodView | None,
    starts: Mapping[Key, Start],
    endings: list[Ending],
) -> Blocker | None:
    """Settle each candidate of a Job that does not count this attempt yet."""
    keys = _keys(job)
    if any(key not in starts for key in keys):
        return None  # settled before a crash
    ending = ending_of(pod, [starts[key].task for key in keys], live.run.manifest.spec)
    endings.append(ending)
    reports = ending.reports if isinstance(ending, Reported) else [None] * len(keys)
    blocker = _blocker(ending)
    for key, attempt, report in zip(keys, job.attempt.attempts, reports, strict=True):
        candidate = live.open.get(key)
        if candidate is None or candidate.ended_attempts >= attempt:
            continue  # settled before a crash
        if report is not None and report.reason in ("InvalidInput", "TryAgain"):
            blocker = blocker or _of_report(report)
        status, finished = _status_after(live, starts[key], ending, report, job, pod)
        live.saw(key, await gateway.tell_candidate(candidate.document, status.wire()), status, finished)
        _observe(known, key, status)
    return blocker


def _status_after(
    live: LiveRun, start: Start, ending: Ending, report: Report | None, job: JobView, pod: PodView | None
) -> tuple[CandidateStatus, Candidate | None]:
    """The status of a candidate after an attempt that ended so, and the candidate if it is finished now."""
    before = live.open[start.key].status
    if isinstance(ending, Failed):
        report = failure(start.task, ending.reason, ending.message, host=pod.node if pod else None)
    if report is None or report.reason in ("InvalidInput", "TryAgain"):
        counted = "disruptions" if isinstance(ending, Disrupted) else "waits"
        return _counted(before, counted), None
    seconds = report.seconds | _waited(job, pod)
    candidate = settle(live.run, start, report.model_copy(update={"seconds": seconds}))
    if candidate is None:
        _log.info("%s failed (%s: %s); it is tried once more", job.name, report.reason, report.message)
        return _counted(before, "failures"), None
    return finished_status(candidate, before, live.run.report_dir), candidate


def _waited(job: JobView, pod: PodView | None) -> dict[str, float]:
    """How long a candidate waited for its pod; those of one pod share the wait."""
    if pod is None or pod.started is None:
        return {}
    return {"wait": round((pod.started - job.created).total_seconds() / len(job.attempt.indices), 3)}


async def count_wait(known: Known, gateway: Gateway, job: JobView) -> None:
    """Count an attempt that never began, so that the next one has another name."""
    if not job.attempt.indices:
        counters = known.counters(job.attempt.step)
        counters = counters.model_copy(update={"waits": counters.waits + 1})
        await write_step(known, gateway, job.attempt.step, counters)
        return
    for index in job.attempt.indices:
        key = Key(job.attempt.step, index)
        candidate = known.live.open.get(key) if known.live else None
        if candidate is not None and known.live is not None:
            status = _counted(candidate.status, "waits")
            known.live.saw(key, await gateway.tell_candidate(candidate.document, status.wire()), status, None)


def _counted(before: CandidateStatus, counter: str) -> CandidateStatus:
    return before.model_copy(update={"attempts": before.attempts + 1, counter: getattr(before, counter) + 1})


async def _settle_step(
    known: Known,
    gateway: Gateway,
    pool: Pool,
    job: JobView,
    pod: PodView | None,
    now: datetime,
    endings: list[Ending],
) -> Blocker | None:
    """Settle the end of a step that is no candidate: its counter and its result in one write of the status."""
    step = job.attempt.step
    if known.ended_attempts(step) >= job.attempt.attempts[0]:
        return None  # settled before a crash
    tasks = await step_tasks(known, step, gateway, pool)
    ending = _step_ending(pod, tasks, cast(EvoMerge, known.manifest).spec)  # without a manifest there are no tasks
    endings.append(ending)
    if isinstance(ending, Reported) and ending.reports[0].reason is not None:
        ending = _of_step(ending.reports[0])
    changes: dict[str, object] = {}
    if isinstance(ending, Reported):
        changes = await _result(known, gateway, step, ending.reports[0])
    blocker = _blocker(ending)
    if isinstance(ending, Failed):
        changes["message"] = f"{step}: {ending.message} ({ending.reason})"
    if isinstance(ending, Waits):
        known.probe_at = now + timedelta(seconds=PROBE_SECONDS)
    counter = _COUNTERS[type(ending)]
    counters = known.counters(step)
    counters = counters.model_copy(update={counter: getattr(counters, counter) + 1})
    if step in (PREPARE, SELECT, WRITE) and counter == "succeeded":
        counters = forgiven(counters)  # they come again and again: failures days apart are no two in a row
    await write_step(known, gateway, step, counters, changes)
    return blocker


_COUNTERS: dict[type[Ending], str] = {
    Reported: "succeeded",
    Failed: "failures",
    Disrupted: "disruptions",
    Waits: "waits",
    Wrong: "failures",
}


def forgiven(counters: StepCounters) -> StepCounters:
    """A step that may fail anew; its attempts keep counting, for their names."""
    return counters.model_copy(update={"failures": 0, "waits": counters.waits + counters.failures})


def _step_ending(pod: PodView | None, tasks: Sequence[Task], spec: EvoMergeSpec) -> Ending:
    """How a step's attempt has ended. A look at storage may have begun before its first result was stored."""
    endings = [ending_of(pod, [task], spec) for task in tasks]
    return next((e for e in endings if isinstance(e, Reported)), endings[0])


async def _result(known: Known, gateway: Gateway, step: str, report: Report) -> dict[str, object]:
    """Store what a step has found; returns the fields of the status that say so."""
    if step == PREPARE and report.prepare is not None:
        if known.prepared is None:
            names = default_names(known.manifest, report.prepare) if known.manifest else ()
            lock = _lock(known, 0, report.prepare, {BASELINES_KEY: canonical_json(names)})
            stored = await gateway.create_config_map(lock, known.parent)
            known.prepared, known.pinned = report.prepare, pinned_names(stored)  # an older operator may have stored it
        stages = known.status.stages
        if any(stage.digest is None for stage in stages):
            stages = await _pinned_winner(known, gateway, report.prepare)
        return {"reason": None, "message": None, "stages": stages}  # storage is there (again)
    if step == SELECT:
        return {"selected": report.select}
    if step == WRITE and report.export is not None and known.live is not None:
        over = StageStatus(name=known.live.run.stage.name, selected=known.status.selected, uri=report.export.out)
        return {"stages": [*known.status.stages, over], "selected": None}
    if step == CONCLUDE:
        return {"conclusion": report.conclude}
    if step == EXPORT and report.export is not None:
        return {"exported": report.export.out}
    return {}


async def _pinned_winner(known: Known, gateway: Gateway, found: PrepareResult) -> list[StageStatus]:
    """Store what was found once a stage's winner was there; the stages, the last with its winner's digest."""
    *before, last = known.status.stages
    stored = await gateway.create_config_map(_lock(known, len(known.status.stages), found, {}), known.parent)
    sources = PrepareResult.model_validate_json(stored["data"][LOCK_KEY]).sources
    digest = next(source.digest for source in sources if source.name == last.name)
    return [*before, last.model_copy(update={"digest": digest})]


def _lock(known: Known, stages: int, found: PrepareResult, further: Mapping[str, str]) -> Document:
    """The lock that is made once so many stages are over, with `further` data."""
    text = canonical_json(found.wire())
    metadata = known.parent.metadata(lock_name(known, stages)) | {"annotations": {DIGEST: digest_of_text(text)}}
    data = {LOCK_KEY: text, **further}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True, "data": data}


LOCK_KEY, BASELINES_KEY = "prepared.json", "baselines.json"


def pinned_names(lock: Document) -> tuple[str, ...] | None:
    """The names of the baselines that a lock pins a run to; None: it was made before there were any."""
    names = lock["data"].get(BASELINES_KEY)
    return None if names is None else tuple(json.loads(names))


def lock_name(known: Known, stages: int = 0) -> str:
    """The ConfigMap that pins what prepare found once so many stages were over; the first has the names of the run's
    baselines too."""
    return f"{known.parent.prefix}-lock" + (f"-{stages}" if stages else "")


def _blocker(ending: Ending) -> Blocker | None:
    if isinstance(ending, Waits):
        return Blocker(STORAGE, ending.message)
    if isinstance(ending, Wrong):
        return Blocker("InvalidInput", ending.message)
    return None


def _of_report(report: Report) -> Blocker:
    message = report.message or "the worker gave no reason"
    return Blocker(STORAGE if report.reason == "TryAgain" else "InvalidInput", message)


def _of_step(report: Report) -> Ending:
    """A step's failure as an ending."""
    message = report.message or ""
    if report.reason == "TryAgain":
        return Waits(message)
    if report.reason == "InvalidInput":
        return Wrong(message)
    return Failed(report.reason or "Error", message)


def _observe(known: Known, key: Key, status: CandidateStatus) -> None:
    for phase, seconds in status.seconds.items():
        if phase != "total":
            SECONDS.labels(known.parent.namespace, known.parent.name, key.stage, phase).observe(seconds)
