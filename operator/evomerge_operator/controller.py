"""One loop an EvoMerge: woken by news of it, and by its own tick, it reconciles; errors make it wait and look anew."""

import asyncio
import contextlib
import logging
import time
from datetime import UTC, datetime

from evomerge_operator import metrics
from evomerge_operator.kube.errors import ConflictError, GoneError, KubeError, NotLeaderError, UnavailableError
from evomerge_operator.kube.objects import UID_LABEL, Document
from evomerge_operator.services.backoff import longer
from evomerge_operator.services.decide import is_over
from evomerge_operator.services.known import Known
from evomerge_operator.services.publish import publish
from evomerge_operator.services.reconcile import Reconciler, VanishedError

TICK_SECONDS = 5.0
STUCK_SECONDS = 300.0
"""A look that takes longer means that the loop is dead."""
_GATHER_SECONDS = 0.05  # news come in bursts
_STOP_SECONDS = 5.0
_ERROR_SECONDS = (1.0, 30.0)
_log = logging.getLogger(__name__)


class Controller:
    """All EvoMerges that are watched."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler
        self._known: dict[str, Known] = {}
        self._wakes: dict[str, asyncio.Event] = {}
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._since: dict[str, float] = {}  # when the looks that are under way began

    def saw_evomerge(self, document: Document, *, deleted: bool) -> None:
        """News of an EvoMerge."""
        uid = document["metadata"]["uid"]
        if deleted:
            self._forget(uid)
            return
        known = self._known.get(uid)
        if known is None:
            self._known[uid] = Known.of(document)
            self._wakes[uid] = asyncio.Event()
            self._wakes[uid].set()
            self._loops[uid] = asyncio.create_task(self._follow(uid))
            return
        generation = known.generation
        known.saw_evomerge(document)
        if known.generation != generation or "deletionTimestamp" in document["metadata"]:
            self._wakes[uid].set()

    def saw_job(self, job: Document, *, deleted: bool) -> None:
        """News of a Job."""
        known = self._parent(job)
        if known is not None:
            known.saw_job(job, deleted=deleted)
            self._wakes[known.parent.uid].set()

    def saw_pod(self, pod: Document, *, deleted: bool) -> None:
        """News of a pod."""
        known = self._parent(pod)
        if known is not None:
            known.saw_pod(pod, deleted=deleted)
            self._wakes[known.parent.uid].set()

    async def beat(self) -> None:
        """Say that the loops are alive, for as long as none of them is stuck."""
        while True:
            looks = (since for uid, since in self._since.items() if not self._reconciler.is_planning(uid))
            oldest = min(looks, default=time.monotonic())
            if time.monotonic() - oldest < STUCK_SECONDS:
                metrics.HEARTBEAT.set_to_current_time()
            await asyncio.sleep(TICK_SECONDS)

    async def stop(self) -> None:
        """End all loops; a write that is under way is finished or torn, as by a crash."""
        loops = list(self._loops.values())
        self._known.clear()  # one that misses its cancellation, because a time-out came with it, ends by this
        for loop in loops:
            loop.cancel()
        if loops:
            await asyncio.wait(loops, timeout=_STOP_SECONDS)

    def _parent(self, child: Document) -> Known | None:
        known = self._known.get((child["metadata"].get("labels") or {}).get(UID_LABEL, ""))
        # Anybody can write a label, in any namespace.
        return known if known is not None and known.parent.namespace == child["metadata"]["namespace"] else None

    def _forget(self, uid: str) -> None:
        known = self._known.pop(uid, None)
        self._wakes.pop(uid, None)
        loop = self._loops.pop(uid, None)
        if loop is not None and loop is not asyncio.current_task():
            loop.cancel()
        self._reconciler.forget(uid)
        if known is not None:
            metrics.forget(known.parent.namespace, known.parent.name)

    async def _follow(self, uid: str) -> None:
        known, wake = self._known[uid], self._wakes[uid]
        pause = 0.0
        while uid in self._known:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await wake.wait()
            await asyncio.sleep(max(pause, _GATHER_SECONDS))
            wake.clear()
            try:
                pause = await self._look(known, pause)
            except VanishedError:
                self._forget(uid)
                return

    async def _look(self, known: Known, pause: float) -> float:
        """One look; returns how long to wait before the next, after an error."""
        uid = known.parent.uid
        self._since[uid] = time.monotonic()
        try:
            with metrics.RECONCILE_SECONDS.time():
                await self._reconciler.reconcile(known, datetime.now(UTC))
            publish(known)
            if is_over(known):
                known.mark_ended()
            return 0.0
        except VanishedError:
            raise
        except (ConflictError, GoneError) as error:
            _log.info("%s/%s: %s; looking again", known.parent.namespace, known.parent.name, error)
            known.mark_stale()
        except NotLeaderError as error:
            # If the Lease is lost for good, the process ends; if it is won back in time, all goes on.
            _log.warning("%s/%s: %s", known.parent.namespace, known.parent.name, error)
            known.mark_stale()
        except UnavailableError as error:
            _log.warning("%s/%s: %s", known.parent.namespace, known.parent.name, error)
        except KubeError as error:
            metrics.RECONCILE_ERRORS.inc()
            _log.error("%s/%s: %s", known.parent.namespace, known.parent.name, error)
        except Exception:
            metrics.RECONCILE_ERRORS.inc()
            _log.exception("%s/%s: an error of the operator's own", known.parent.namespace, known.parent.name)
            known.mark_stale()
        finally:
            del self._since[uid]
        return longer(pause, *_ERROR_SECONDS)
