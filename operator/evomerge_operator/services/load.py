"""Reading what is stored of an EvoMerge: its manifest, what is pinned, and its run, stage by stage."""

import asyncio
from typing import cast

from evomerge_contract.manifest import EvoMerge
from evomerge_contract.problems import in_words
from evomerge_contract.report import PrepareResult, Problem
from evomerge_contract.status import EvoMergeStatus
from evomerge_contract.task import Source
from evomerge_operator.kube.errors import GoneError
from evomerge_operator.kube.gateway import Gateway
from evomerge_operator.kube.objects import Document
from evomerge_operator.plan.finish import stops
from evomerge_operator.plan.run import BASELINES
from evomerge_operator.planning import calls
from evomerge_operator.planning.pool import Pool
from evomerge_operator.services import decide
from evomerge_operator.services.decide import Fail
from evomerge_operator.services.known import Known
from evomerge_operator.services.live_run import LiveRun
from evomerge_operator.services.settle import LOCK_KEY, forgiven, lock_name, pinned_names
from evomerge_operator.services.tasks import report_dir


class Loader:
    """Reads for every EvoMerge, one log after the other."""

    def __init__(self, gateway: Gateway, pool: Pool) -> None:
        self._gateway = gateway
        self._pool = pool
        self._reading = asyncio.Lock()
        self.readers: set[str] = set()
        """The UIDs of those that read their logs, or wait for their turn."""

    async def manifest(self, known: Known) -> Fail | None:
        """Read the manifest where it has changed; what is wrong with it."""
        generation = known.generation
        if known.manifest is not None and known.read_generation == generation:
            return None
        metadata = {key: known.document["metadata"][key] for key in ("name", "namespace")}
        document = {key: known.document[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": metadata}
        manifest = await self._pool.call(known.parent.uid, calls.check, document, known.parent.name)
        if not isinstance(manifest, EvoMerge):
            return _invalid(manifest)
        refused = decide.refusal(manifest)
        if refused:
            return _invalid(refused)
        known.manifest, known.read_generation = manifest, generation
        if known.status.phase == "Failed" and known.status.observed_generation != known.generation:
            known.status = _forgiven(known.status)
        known.live = None  # its tasks carry the manifest's settings
        return None

    async def run(self, known: Known) -> Fail | None:
        """Read the locks and the run with its stages, where there are any; why it cannot be gone on with."""
        if known.manifest is None or known.manifest.spec.export is None:
            return None
        if known.prepared is None:
            await self._read_lock(known)
            if known.prepared is None and known.counters(decide.PREPARE).succeeded:
                return Fail("LogDamaged", f"the ConfigMap {lock_name(known)}, which pins models and data, was deleted")
        if known.prepared is None:
            return None
        if known.live is None:
            problem = await self._begin(known, known.manifest, known.prepared, known.manifest.spec.export.uri)
            if problem is not None:
                return problem
        return await self._advance(known, cast(LiveRun, known.live))

    async def _begin(self, known: Known, manifest: EvoMerge, prepared: PrepareResult, out: str) -> Fail | None:
        """The run with its first stage, as its candidates say it stands."""
        folder = report_dir(out, known.parent)
        begun = await self._pool.call(known.parent.uid, calls.begin, manifest, prepared, folder, known.pinned)
        if isinstance(begun, list):
            return _invalid(begun)
        live = LiveRun(*begun)
        too_large = decide.log_too_large(live.run)
        if too_large is not None:
            return Fail("LogTooLarge", too_large)
        for stage in (BASELINES, live.run.stage.name):
            problem = await self._read_log(known, live, stage)
            if problem is not None:
                return Fail("LogDamaged", problem)
        known.live = live
        return None

    async def _advance(self, known: Known, live: LiveRun) -> Fail | None:
        """Begin the stages that follow those which are over, as far as their candidates say they stand."""
        known.live = None  # unless all of it comes to be known
        for number, (over, stage) in enumerate(zip(known.status.stages, live.run.stages, strict=False), start=1):
            if over.digest is None:
                break
            stage.selected = over.selected
            stage.winner = Source(name=over.name, uri=over.uri, digest=over.digest)
            if len(live.run.stages) == number and not stops(live.run):
                problem = await self._begin_next(known, live, number)
                if problem is not None:
                    return problem
        known.live = live
        return None

    async def _begin_next(self, known: Known, live: LiveRun, number: int) -> Fail | None:
        lock = await self._lock(known, number)
        if lock is None:
            return Fail("LogDamaged", f"the ConfigMap {lock_name(known, number)}, which pins models, was deleted")
        prepared = PrepareResult.model_validate_json(lock["data"][LOCK_KEY])
        begun = await self._pool.call(known.parent.uid, calls.begin_next, live.run.common, number, prepared)
        if isinstance(begun, list):
            return _invalid(begun)
        live.begin(*begun)
        too_large = decide.log_too_large(live.run)
        if too_large is not None:
            return Fail("LogTooLarge", too_large)
        problem = await self._read_log(known, live, live.run.stage.name)
        return None if problem is None else Fail("LogDamaged", problem)

    async def _read_log(self, known: Known, live: LiveRun, stage: str) -> str | None:
        """Take over the MergeCandidates of a stage, page by page; why they cannot be gone on with.

        One log after the other: the API server does not let a list be gone on with for long.
        """
        following, first = "", True
        self.readers.add(known.parent.uid)
        try:
            async with self._reading:
                while following or first:
                    text = await self._gateway.candidate_page(known.parent, following, stage=stage)
                    page = await self._pool.call(known.parent.uid, calls.read, live.proposer, text)
                    if page.problem is not None:
                        return page.problem
                    live.read(page)
                    following, first = page.following, False
        finally:
            self.readers.discard(known.parent.uid)
        return None

    async def _read_lock(self, known: Known) -> None:
        lock = await self._lock(known)
        if lock is not None:
            known.prepared = PrepareResult.model_validate_json(lock["data"][LOCK_KEY])
            known.pinned = pinned_names(lock)

    async def _lock(self, known: Known, stages: int = 0) -> Document | None:
        """The lock that was made once so many stages were over."""
        try:
            lock = await self._gateway.config_map(known.parent.namespace, lock_name(known, stages))
        except GoneError:
            return None
        return lock if known.parent.owns(lock) else None


def _invalid(problems: list[Problem]) -> Fail:
    return Fail("InvalidManifest", in_words(problems))


def _forgiven(status: EvoMergeStatus) -> EvoMergeStatus:
    """After an end and an edit: steps may fail anew, and their attempts keep counting."""
    steps = {name: forgiven(counters) for name, counters in status.steps.items()}
    changes = {"steps": steps, "phase": None, "reason": None, "message": None, "finished_at": None}
    return status.model_copy(update=changes)
