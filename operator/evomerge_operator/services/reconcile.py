"""One look at an EvoMerge and what follows from it: observe, settle, decide, act, say how it stands."""

import hashlib
import json
import logging
from datetime import datetime, timedelta

from evomerge_contract.status import EvoMergeStatus
from evomerge_operator.errors import EvoMergeError
from evomerge_operator.kube.errors import GoneError, RefusedError
from evomerge_operator.kube.gateway import Gateway
from evomerge_operator.kube.jobs import Attempt, Defaults, make_job
from evomerge_operator.kube.objects import Document
from evomerge_operator.planning.pool import PlanningError, Pool
from evomerge_operator.services import decide
from evomerge_operator.services.act import start_candidates, start_step
from evomerge_operator.services.backoff import longer
from evomerge_operator.services.decide import Decision, Fail
from evomerge_operator.services.known import Known
from evomerge_operator.services.load import Loader
from evomerge_operator.services.settle import (
    PROBE_SECONDS,
    count_wait,
    end_job,
    settle_attempts,
)
from evomerge_operator.services.standing import not_started, obstacle, only_figures, status_of, what_holds
from evomerge_operator.services.status import write_status
from evomerge_operator.services.tasks import step_task

RESYNC = timedelta(seconds=60)
_RESYNC_AT_REST = timedelta(minutes=10)  # searches that have ended may be many, and only their deletion can be missed
_LOOK_CLOSER = timedelta(seconds=10)
_FIGURES = timedelta(seconds=1)
_BACKOFF_SECONDS = (30.0, 600.0)
_PLAN_SECONDS = (30.0, 600.0)
_REFUSED = "JobRefused"
_log = logging.getLogger(__name__)


class VanishedError(EvoMergeError):
    """The EvoMerge itself is not there any more."""


class Reconciler:
    """Carries an EvoMerge a step further each time."""

    def __init__(self, gateway: Gateway, defaults: Defaults, pool: Pool) -> None:
        self._gateway = gateway
        self._defaults = defaults
        self._pool = pool
        self._loader = Loader(gateway, pool)

    async def reconcile(self, known: Known, now: datetime) -> None:
        """Look, settle what has ended, do the next thing, write the status.

        Raises:
            KubeError: the API server refused or did not answer; the next look begins where this one ended.
            VanishedError: there is nothing to look at any more.
        """
        before = known.status
        decision = await self._planned(known, now)
        if isinstance(decision, decide.Idle):
            await self._end_jobs(known)
            return
        if isinstance(decision, decide.Delete):
            await self._gateway.delete_evomerge(known.document)
            return
        await self._look_closer(known, now)
        status = status_of(known, decision, now)
        if only_figures(before, status) and known.written_at is not None and now - known.written_at < _FIGURES:
            return
        await write_status(known, self._gateway, status)
        known.written_at = now
        await self._say(known, before, now)

    def forget(self, uid: str) -> None:
        """Let go of what is known of an EvoMerge that is gone."""
        self._pool.forget(uid)

    def is_planning(self, uid: str) -> bool:
        """Whether a look waits for planning, which has a limit of its own, or for its turn."""
        return uid in self._loader.readers or self._pool.callers[uid] > 0

    async def _planned(self, known: Known, now: datetime) -> Decision:
        """Decide and act; a search whose planning takes too much waits, longer each time, and no other does."""
        if known.plans_at is not None and now < known.plans_at and not decide.is_over(known):
            return decide.Wait()
        try:
            decision = await self._decide(known, now)
            if not isinstance(decision, decide.Idle | decide.Delete):
                await self._act(known, decision, now)
        except PlanningError as error:
            known.plan_backoff = longer(known.plan_backoff, *_PLAN_SECONDS)
            known.plans_at = now + timedelta(seconds=known.plan_backoff)
            known.overloaded = error.reason, f"{error}; it is tried again at {known.plans_at:%H:%M:%S} UTC"
            return decide.Wait()
        known.plans_at, known.plan_backoff, known.overloaded = None, 0.0, None
        return decision

    async def _decide(self, known: Known, now: datetime) -> Decision:
        at_rest = decide.is_over(known) and not known.jobs
        if known.observed_at is None or now - known.observed_at > (_RESYNC_AT_REST if at_rest else RESYNC):
            await self._observe(known, now)
        known.looked_at = known.generation
        if decide.is_over(known):
            return decide.decide(known, now)
        problem = await self._loader.manifest(known) or await self._loader.run(known)
        if problem is not None:
            return problem
        blocker = await settle_attempts(known, self._gateway, self._pool, now)
        if blocker is not None and blocker.reason != decide.STORAGE:
            return Fail(blocker.reason, blocker.message)
        if blocker is not None:
            known.probe_at = now + timedelta(seconds=PROBE_SECONDS)
            changes = {"reason": blocker.reason, "message": blocker.message}
            await write_status(known, self._gateway, known.status.model_copy(update=changes))
        problem = await self._loader.run(known)  # prepare may just have ended
        return problem or decide.decide(known, now)

    async def _observe(self, known: Known, now: datetime) -> None:
        """What a watch may have missed: the resource itself, its Jobs and its pods."""
        try:
            document = await self._gateway.evomerge(known.parent.namespace, known.parent.name)
        except GoneError as error:
            raise VanishedError(f"{known.parent.name} is gone") from error
        if document["metadata"]["uid"] != known.parent.uid:
            raise VanishedError(f"{known.parent.name} is another one now")
        known.saw_evomerge(document)
        before = {pod.uid for pod in known.pods.values()}
        known.observed(await self._gateway.jobs(known.parent), await self._gateway.pods(known.parent), before, now)

    async def _act(self, known: Known, decision: Decision, now: datetime) -> None:
        """Carry out the decision; what the API server refuses is asked again later."""
        if isinstance(decision, Fail | decide.Suspend):
            await self._end_jobs(known)
            return
        await self._end_late(known, now)
        try:
            if isinstance(decision, decide.RunStep):
                if decision.step == decide.PREPARE and known.prepared is None:
                    await self._check_template(known)
                await start_step(known, decision.step, self._gateway, self._defaults, self._pool)
            elif isinstance(decision, decide.StartCandidates) and known.live is not None:
                batches = decision.batches
                await start_candidates(known, known.live, batches, self._gateway, self._defaults, self._pool)
        except RefusedError as error:
            known.starts_at = now + timedelta(seconds=PROBE_SECONDS)
            known.pending = _REFUSED, f"{str(error)[:3900]}; it is asked again every {PROBE_SECONDS} s"
        else:
            if known.pending is not None and known.pending[0] == _REFUSED and not isinstance(decision, decide.Wait):
                known.pending = None

    async def _check_template(self, known: Known) -> None:
        """Ask whether a worker's Job would be accepted, before anything has been paid for."""
        if known.manifest is None:
            return
        attempt = Attempt(step="check", kind="evaluate", indices=(), attempts=(1,))
        tasks = [await step_task(known, decide.PREPARE, self._gateway, self._pool)]
        await self._gateway.check_job(make_job(known.parent, known.manifest.spec, attempt, tasks, self._defaults))

    async def _end_jobs(self, known: Known) -> None:
        for job in list(known.jobs.values()):
            await end_job(known, self._gateway, job)

    async def _end_late(self, known: Known, now: datetime) -> None:
        """Give back the slots of pods that have not started in time, and wait longer before the next.

        An edit may be the cure: what is held up goes at once then, and nothing waits.
        """
        if known.manifest is None:
            return
        edited = known.status.observed_generation not in (None, known.generation)
        limit = timedelta(seconds=known.manifest.spec.worker.start_seconds)
        waiting = [job for job in not_started(known) if not job.queued]
        late = [job for job in waiting if now - job.began > limit or (edited and what_holds(known, job) is not None)]
        if edited:
            known.starts_at, known.pending = None, None
        if edited or len(waiting) < len(known.jobs):
            known.start_backoff = 0.0
        stuck = obstacle(known, now)
        for job in late:
            _log.warning("%s has not started in %s; its slot is given back", job.name, now - job.began)
            await count_wait(known, self._gateway, job)
            await end_job(known, self._gateway, job)
        if late and not edited:
            known.starts_at = wait_longer(known, now)
            reason, message = stuck or ("NotStarted", f"{len(late)} pods did not start, and nobody says why")
            then = f"given up after {limit.seconds} s, tried again at {known.starts_at:%H:%M:%S} UTC"
            known.pending = reason, f"{message}; {then}"

    async def _look_closer(self, known: Known, now: datetime) -> None:
        """Ask for the Events of Jobs without pods and of pods that do not get on: no status holds their reason."""
        if known.looked_closer_at is not None and now - known.looked_closer_at < _LOOK_CLOSER:
            return
        known.looked_closer_at = now
        stuck = [job for job in not_started(known) if now - job.began > _LOOK_CLOSER and not job.queued]
        for job in stuck[:3]:
            pod = known.pods.get(job.name)
            if pod is not None and pod.pending is not None:
                continue
            uid = pod.uid if pod is not None else job.uid
            events = await self._gateway.events_about(known.parent.namespace, uid)
            warnings = [e for e in events if e.get("type") == "Warning"]
            if warnings:
                known.trouble[uid] = (warnings[-1].get("reason") or "Warning", warnings[-1].get("message") or "")

    async def _say(self, known: Known, before: EvoMergeStatus, now: datetime) -> None:
        """An Event for every change of phase or reason; one that says the same again is counted."""
        after = known.status
        if (before.phase, before.reason) == (after.phase, after.reason):
            return
        await self._gateway.post_event(_event(known, after, now))


def wait_longer(known: Known, now: datetime) -> datetime:
    """When to start pods again now that some have not started in time: after twice as long as the last time.

    Some that are late while others wait began with those that were late before, and make nothing worse.
    """
    if known.start_backoff and known.starts_at is not None and now < known.starts_at:
        return known.starts_at
    known.start_backoff = longer(known.start_backoff, *_BACKOFF_SECONDS)
    return now + timedelta(seconds=known.start_backoff)


def _event(known: Known, status: EvoMergeStatus, now: datetime) -> Document:
    parent = known.parent
    reason, message = status.reason or status.phase or "", status.message or f"{status.phase}"
    same = hashlib.sha256(json.dumps([parent.uid, status.phase, reason, message]).encode()).hexdigest()[:16]
    time = now.isoformat(timespec="seconds").replace("+00:00", "Z")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{parent.name}.{same}", "namespace": parent.namespace},
        "involvedObject": {
            "apiVersion": known.document["apiVersion"],
            "kind": "EvoMerge",
            "name": parent.name,
            "namespace": parent.namespace,
            "uid": parent.uid,
        },
        "type": "Warning" if status.phase in ("Failed", "Waiting") else "Normal",
        "reason": reason,
        "message": message[:1000],
        "source": {"component": "evomerge-operator"},
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }
