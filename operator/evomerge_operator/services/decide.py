"""What is to happen next for an EvoMerge: pure decisions over what is known of it. `act` carries them out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

from evomerge_contract.manifest import EvoMerge
from evomerge_contract.text import seconds_of
from evomerge_operator import plan
from evomerge_operator.kube.pods import JobView
from evomerge_operator.plan import Key, Start
from evomerge_operator.services.known import Known
from evomerge_operator.services.search import Search

PREPARE, CONCLUDE, EXPORT = "prepare", "conclude", "export"
STORAGE = "StorageUnavailable"
"""The reason under which a search waits for its storage."""
MAX_STEP_FAILURES = 2
MAX_LOG_BYTES = 512 << 20
_CANDIDATE_BYTES = 1000  # of a MergeCandidate besides its genome and scores
_GENE_BYTES = 11


@dataclass(frozen=True)
class Rest:
    """Nothing is to be done: it has ended, or is being deleted."""


@dataclass(frozen=True)
class Suspend:
    """Unfinished Jobs end; nothing is told."""


@dataclass(frozen=True)
class Fail:
    """The end, without a winner."""

    reason: str
    message: str


@dataclass(frozen=True)
class Delete:
    """Its time after its end is over."""


@dataclass(frozen=True)
class Wait:
    """Attempts are under way, or may be made only later."""


@dataclass(frozen=True)
class RunStep:
    """An attempt at prepare, conclude or export."""

    step: str


@dataclass(frozen=True)
class StartCandidates:
    """Jobs to start, each with its candidates."""

    batches: tuple[tuple[Start, ...], ...]


Decision = Rest | Suspend | Fail | Delete | Wait | RunStep | StartCandidates


def refusal(manifest: EvoMerge) -> str | None:
    """What keeps a valid manifest from running on a cluster; the CRD says the same, where it is up to date."""
    spec = manifest.spec
    models = [*spec.models, *([spec.base] if spec.base else [])]
    uris = [uri for m in models for uri in (m.uri, m.adapter) if uri is not None]
    uris += [uri for o in spec.evaluation.objectives for uri in o.evaluator.uris.values()]
    local = [uri for uri in uris if not uri.startswith(("s3://", "hf://"))]
    if local:
        return f"{local[0]} is not on any server: on a cluster models and data lie at s3:// (or models at hf://)"
    if spec.export is None:
        return "spec.export.uri is missing: on a cluster the winner has no other place to go"
    return None


def log_too_large(search: Search) -> str | None:
    """Why the log of a search cannot be kept in the cluster."""
    genes, candidates = len(search.run.space.genes), search.run.candidates
    size = candidates * (_CANDIDATE_BYTES + genes * _GENE_BYTES)
    if size <= MAX_LOG_BYTES:
        return None
    return (
        f"{candidates} candidates of {genes} genes would hold about {size >> 20} MiB in the cluster's store, "
        f"more than {MAX_LOG_BYTES >> 20}; search fewer candidates or coarser groups"
    )


def has_ended(known: Known) -> bool:
    """Whether nothing more is to be done for it. An edit after a failure is a new beginning."""
    status = known.status
    failed = status.phase == "Failed" and status.observed_generation == known.generation
    return status.phase == "Succeeded" or failed or "deletionTimestamp" in known.document["metadata"]


def decide(known: Known, now: datetime) -> Decision:
    """The one thing to do now. Attempts that have ended are settled before this is asked."""
    if has_ended(known):
        return _after_the_end(known, now)
    manifest = known.manifest
    if manifest is None or known.status.exported is not None:
        return Wait()  # the latter for the status, which is about to say that it has succeeded
    return (
        _stopped(known, manifest, now)
        or _preparing(known, now)
        or _searching(known, manifest, now)
        or _finishing(known, now)
    )


def seconds_active(known: Known, now: datetime) -> float:
    """How long it has worked, suspended times aside."""
    status = known.status
    since = (now - status.active_since).total_seconds() if status.active_since else 0.0
    return status.active_seconds + max(0.0, since)


def waits_for_storage(known: Known) -> bool:
    """Whether storage could not be read or written when it was last tried."""
    return known.status.reason == STORAGE


def _after_the_end(known: Known, now: datetime) -> Decision:
    if "deletionTimestamp" in known.document["metadata"]:
        return Rest()
    ttl = known.document["spec"].get("ttlSecondsAfterFinished")
    finished = known.status.finished_at
    if ttl is not None and finished is not None and now >= finished + timedelta(seconds=ttl):
        return Delete()
    return Rest()


def _stopped(known: Known, manifest: EvoMerge, now: datetime) -> Decision | None:
    """Suspension and budgets, in the order in which they bind."""
    spec = manifest.spec
    if spec.suspend:
        return Suspend()
    deadline = spec.budget.deadline
    if deadline is not None and seconds_active(known, now) >= seconds_of(deadline):
        return Fail("DeadlineExceeded", f"it has worked for {deadline}, all that spec.budget.deadline allows")
    if known.disruptions > spec.budget.disruptions:
        lost = "1 attempt lost its pod" if known.disruptions == 1 else f"{known.disruptions} attempts lost their pods"
        message = f"{lost}, more than spec.budget.disruptions ({spec.budget.disruptions}) allows"
        message += f"; the last: {known.last_loss}" if known.last_loss else ""
        return Fail("TooManyDisruptions", message)
    for step in (PREPARE, CONCLUDE, EXPORT):
        if known.counters(step).failures >= MAX_STEP_FAILURES:
            return Fail(f"{step.capitalize()}Failed", known.status.message or f"{step} failed twice")
    return None


def _preparing(known: Known, now: datetime) -> Decision | None:
    """Prepare comes first, and again while storage is away: it looks whether all is as it was."""
    if known.prepared is not None and not waits_for_storage(known):
        return None
    if any(job.attempt.kind == PREPARE for job in known.jobs.values()):
        return Wait()
    return _step_unless_early(known, PREPARE, now)


def _step_unless_early(known: Known, step: str, now: datetime) -> Decision:
    early = (known.probe_at is not None and now < known.probe_at) or _backing_off(known, now)
    return Wait() if early else RunStep(step)


def _searching(known: Known, manifest: EvoMerge, now: datetime) -> Decision | None:
    search = known.search
    if search is None or known.status.conclusion is not None:
        return None
    lost = plan.all_sources_failed(search.run, search.finished)
    if lost:
        return Fail("NoSourceScored", lost)
    if plan.too_many_failures(search.run, search.fitness):
        return Fail("TooManyFailures", plan.failures_in_words(search.run, search.finished))
    if search.complete:
        return None
    live = list(known.jobs.values())
    slots = manifest.spec.parallelism - len(live)
    if slots <= 0 or _backing_off(known, now):
        return Wait()
    together = manifest.spec.worker.candidates_per_pod
    state = search.state(keys_of(live, search))
    starts = plan.next_starts(search.run, state, slots * together)
    return StartCandidates(_batches(starts, state.attempts, slots, together)) if starts else Wait()


def keys_of(jobs: Sequence[JobView], search: Search) -> set[Key]:
    """The candidates that Jobs are attempts at."""
    stages = (search.run.stage, plan.BASELINES)
    return {Key(j.attempt.step, i) for j in jobs if j.attempt.step in stages for i in j.attempt.indices}


def _batches(
    starts: Sequence[Start], failures: Mapping[Key, int], slots: int, together: int
) -> tuple[tuple[Start, ...], ...]:
    """Candidates of one stage share a pod; one that has failed before goes alone, so that it costs no other."""
    alone = [(start,) for start in starts if failures.get(start.key, 0)]
    fresh = [start for start in starts if not failures.get(start.key, 0)]
    size = min(together, max(1, ceil(len(fresh) / max(1, slots - len(alone)))))
    shared: list[tuple[Start, ...]] = []
    for stage in dict.fromkeys(start.key.stage for start in fresh):
        of_stage = [start for start in fresh if start.key.stage == stage]
        shared += [tuple(of_stage[i : i + size]) for i in range(0, len(of_stage), size)]
    return tuple(sorted([*alone, *shared], key=lambda batch: starts.index(batch[0])))[:slots]


def _finishing(known: Known, now: datetime) -> Decision:
    if known.search is None or any(job.attempt.kind in (CONCLUDE, EXPORT) for job in known.jobs.values()):
        return Wait()
    if known.status.conclusion is None:
        scored = any(c.fitness is not None for k, c in known.search.finished.items() if k.stage != plan.BASELINES)
        if not scored:
            return Fail("NoCandidateScored", "no candidate succeeded, so there is nothing to choose from")
        return _step_unless_early(known, CONCLUDE, now)
    return _step_unless_early(known, EXPORT, now)


def _backing_off(known: Known, now: datetime) -> bool:
    return known.starts_at is not None and now < known.starts_at
