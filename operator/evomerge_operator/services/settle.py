"""Telling: what an attempt's end means is stored in the MergeCandidate or the status, and only then its Job deleted."""

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar, cast

from evomerge_contract.base import canonical_json
from evomerge_contract.manifest import EvoMerge
from evomerge_contract.report import Report
from evomerge_contract.status import CandidateStatus, EvoMergeStatus, StepCounters
from evomerge_operator import plan
from evomerge_operator.kube.candidates import finished_status
from evomerge_operator.kube.gateway import Gateway
from evomerge_operator.kube.jobs import digest_of_text
from evomerge_operator.kube.objects import DIGEST
from evomerge_operator.kube.pods import JobView, PodView
from evomerge_operator.metrics import SECONDS
from evomerge_operator.plan import Key, Start
from evomerge_operator.services.decide import CONCLUDE, EXPORT, PREPARE, STORAGE
from evomerge_operator.services.ending import Disrupted, Ending, Failed, Reported, Waits, Wrong, ending_of, has_ended
from evomerge_operator.services.known import Known
from evomerge_operator.services.search import Search
from evomerge_operator.services.tasks import step_tasks

PROBE_SECONDS = 30
_LOSSES_AT_ONCE = 5
_LONGEST_PAUSE_SECONDS = 300.0
R = TypeVar("R")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What an ended attempt means for the whole: wrong input ends it, storage that is away makes it wait."""

    reason: str
    message: str


async def settle(known: Known, gateway: Gateway, now: datetime) -> Verdict | None:
    """Tell every attempt that has ended, all at once; returns the gravest of what they mean for the whole."""
    endings: list[Ending] = []
    jobs = [job for job in known.jobs.values() if _can_tell(known, job, now)]
    told = [_settle_job(known, gateway, job, now, endings) for job in jobs]
    verdicts = [verdict for verdict in await together(told) if verdict is not None]
    _pause_after_losses(known, endings, now)
    return min(verdicts, key=lambda v: v.reason == STORAGE, default=None)  # wrong input before storage


async def together(coroutines: Iterable[Awaitable[R]]) -> list[R]:
    """Their results; if some fail, one of the errors, once all have ended: no write goes on behind the next look."""
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast(list[R], results)


def _can_tell(known: Known, job: JobView, now: datetime) -> bool:
    if job.attempt.indices and known.search is None:
        return False
    ended = has_ended(job, known.pods.get(job.name), now, gone=job.name in known.gone)
    return ended or _lacks_candidate(known, job)


def _lacks_candidate(known: Known, job: JobView) -> bool:
    """Whether somebody has deleted a MergeCandidate of a Job: it is to be asked anew, and what the Job says is void."""
    search = known.search
    keys = [Key(job.attempt.step, index) for index in job.attempt.indices]
    return search is not None and any(key not in search.open and key not in search.finished for key in keys)


async def _settle_job(
    known: Known, gateway: Gateway, job: JobView, now: datetime, endings: list[Ending]
) -> Verdict | None:
    """Tell what a Job came to, and delete it; its ending is added to `endings`."""
    pod = known.pods.get(job.name)
    verdict = None
    if known.search is None or not job.attempt.indices:
        verdict = await _settle_step(known, gateway, job, pod, now, endings)
    elif not _lacks_candidate(known, job):
        verdict = await _settle_candidates(known, known.search, gateway, job, pod, endings)
    await end_job(known, gateway, job)
    return verdict


def _pause_after_losses(known: Known, endings: Sequence[Ending], now: datetime) -> None:
    """Start more slowly while look after look nothing but losses comes back: something is wrong with the nodes."""
    lost = [ending for ending in endings if isinstance(ending, Disrupted)]
    if len(lost) < len(endings):
        known.losses = 0
    elif lost:
        known.losses += 1
        known.last_loss = lost[-1].message
        if known.losses > _LOSSES_AT_ONCE:
            seconds = min(_LONGEST_PAUSE_SECONDS, 2.0 ** (known.losses - _LOSSES_AT_ONCE))
            known.starts_at = now + timedelta(seconds=seconds)


async def end_job(known: Known, gateway: Gateway, job: JobView) -> None:
    """Delete a Job with what it brought along, once nothing of it is needed any more."""
    for name in job.config_maps:
        await gateway.delete_config_map(known.parent.namespace, name)
    await gateway.delete_job(known.parent.namespace, job.name, job.uid)
    known.drop_job(job.name)


async def _settle_candidates(
    known: Known, search: Search, gateway: Gateway, job: JobView, pod: PodView | None, endings: list[Ending]
) -> Verdict | None:
    """Tell each candidate of a Job that has not been told of this attempt yet."""
    keys = [Key(job.attempt.step, index) for index in job.attempt.indices]
    starts = [plan.start_of(search.run, key, _genome(search, key)) for key in keys]
    ending = ending_of(pod, [start.task for start in starts], search.run.manifest.spec)
    endings.append(ending)
    reports = ending.reports if isinstance(ending, Reported) else [None] * len(starts)
    verdict = _verdict(ending)
    for start, attempt, report in zip(starts, job.attempt.attempts, reports, strict=True):
        candidate = search.open.get(start.key)
        if candidate is None or candidate.ended_attempts >= attempt:
            continue  # told before a crash
        if report is not None and report.reason in ("InvalidInput", "TryAgain"):
            verdict = verdict or _of_report(report)
        status = _told(search, start, ending, report, job, pod)
        told = await gateway.tell_candidate(candidate.document, status.wire())
        search.take(told)
        _observe(known, start, status)
    return verdict


def _told(
    search: Search, start: Start, ending: Ending, report: Report | None, job: JobView, pod: PodView | None
) -> CandidateStatus:
    """The status of a candidate after an attempt that ended so."""
    before = search.open[start.key].status
    if isinstance(ending, Failed):
        report = Report(
            task=start.task.digest,
            kind="evaluate",
            outcome="Failed",
            reason=ending.reason,
            message=ending.message,
            host=pod.node if pod else None,
        )
    if report is None or report.reason in ("InvalidInput", "TryAgain"):
        counted = "disruptions" if isinstance(ending, Disrupted) else "waits"
        return _counted(before, counted)
    seconds = report.seconds | _waited(job, pod)
    candidate = plan.settle(search.run, search.state(set()), start, report.model_copy(update={"seconds": seconds}))
    if candidate is None:
        _log.info("%s failed (%s: %s); it is tried once more", job.name, report.reason, report.message)
        return _counted(before, "failures")
    return finished_status(candidate, before, search.run.report_dir)


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
        changes = _step(known, job.attempt.step, counters)
        await write_status(known, gateway, known.status.model_copy(update=changes))
        return
    for index in job.attempt.indices:
        candidate = known.search.open.get(Key(job.attempt.step, index)) if known.search else None
        if candidate is not None and known.search is not None:
            status = _counted(candidate.status, "waits")
            known.search.take(await gateway.tell_candidate(candidate.document, status.wire()))


def _counted(before: CandidateStatus, counter: str) -> CandidateStatus:
    return before.model_copy(update={"attempts": before.attempts + 1, counter: getattr(before, counter) + 1})


async def _settle_step(
    known: Known, gateway: Gateway, job: JobView, pod: PodView | None, now: datetime, endings: list[Ending]
) -> Verdict | None:
    """Tell the end of prepare, conclude or export: its counter, and its result, in one write of the status."""
    step = job.attempt.step
    if known.ended_attempts(step) >= job.attempt.attempts[0]:
        return None  # told before a crash
    ending = _step_ending(known, step, pod)
    endings.append(ending)
    if isinstance(ending, Reported) and ending.reports[0].reason is not None:
        ending = _of_step(ending.reports[0])
    changes: dict[str, object] = {}
    if isinstance(ending, Reported):
        changes = await _result(known, gateway, step, ending.reports[0])
    verdict = _verdict(ending)
    if isinstance(ending, Failed):
        changes["message"] = f"{step}: {ending.message} ({ending.reason})"
    if isinstance(ending, Waits):
        known.probe_at = now + timedelta(seconds=PROBE_SECONDS)
    counter = _COUNTERS[type(ending)]
    counters = known.counters(step)
    counters = counters.model_copy(update={counter: getattr(counters, counter) + 1})
    if step == PREPARE and counter == "succeeded":
        counters = forgiven(counters)  # storage is looked at again and again: failures days apart are no two in a row
    await write_status(known, gateway, known.status.model_copy(update=changes | _step(known, step, counters)))
    return verdict


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


def _step_ending(known: Known, step: str, pod: PodView | None) -> Ending:
    """How a step's attempt has ended. A look at storage may have begun before its first result was stored."""
    tasks, spec = step_tasks(known, step), cast(EvoMerge, known.manifest).spec  # there are no tasks without a manifest
    endings = [ending_of(pod, [task], spec) for task in tasks]
    return next((e for e in endings if isinstance(e, Reported)), endings[0])


def _step(known: Known, step: str, counters: StepCounters) -> dict[str, object]:
    return {"steps": {**known.status.steps, step: counters}}


async def _result(known: Known, gateway: Gateway, step: str, report: Report) -> dict[str, object]:
    """Store what a step has found; returns the fields of the status that say so."""
    if step == PREPARE and report.prepare is not None:
        if known.prepared is None:
            text = canonical_json(report.prepare.wire())
            metadata = known.parent.metadata(lock_name(known)) | {"annotations": {DIGEST: digest_of_text(text)}}
            lock = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True}
            await gateway.create_config_map(lock | {"data": {LOCK_KEY: text}}, known.parent)
            known.prepared = report.prepare
        return {"reason": None, "message": None}  # storage is there (again)
    if step == CONCLUDE:
        return {"conclusion": report.conclude}
    if step == EXPORT and report.export is not None:
        return {"exported": report.export.out}
    return {}


LOCK_KEY = "prepared.json"


def lock_name(known: Known) -> str:
    """The ConfigMap that pins what prepare found."""
    return f"{known.parent.prefix}-lock"


def _verdict(ending: Ending) -> Verdict | None:
    if isinstance(ending, Waits):
        return Verdict(STORAGE, ending.message)
    if isinstance(ending, Wrong):
        return Verdict("InvalidInput", ending.message)
    return None


def _of_report(report: Report) -> Verdict:
    message = report.message or "the worker gave no reason"
    return Verdict(STORAGE if report.reason == "TryAgain" else "InvalidInput", message)


def _of_step(report: Report) -> Ending:
    """A step's failure as an ending."""
    message = report.message or ""
    if report.reason == "TryAgain":
        return Waits(message)
    if report.reason == "InvalidInput":
        return Wrong(message)
    return Failed(report.reason or "Error", message)


async def write_status(known: Known, gateway: Gateway, status: EvoMergeStatus) -> None:
    """Write a status where it differs from what is there."""
    before = known.document.get("status") or {}
    if status == EvoMergeStatus.model_validate(before):
        return
    wanted = status.wire()
    patch = dict.fromkeys(before.keys() - wanted.keys()) | wanted  # a merge patch removes what it names null
    known.saw_evomerge(await gateway.set_status(known.document, patch))


def _genome(search: Search, key: Key) -> "tuple[float, ...] | None":
    return None if key.stage == plan.BASELINES else search.genomes[key.index]


def _observe(known: Known, start: Start, status: CandidateStatus) -> None:
    for phase, seconds in status.seconds.items():
        if phase != "total":
            SECONDS.labels(known.parent.namespace, known.parent.name, start.key.stage, phase).observe(seconds)
