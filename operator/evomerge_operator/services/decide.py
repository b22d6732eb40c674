"""What is to happen next for an EvoMerge: pure decisions over what is known of it. `act` carries them out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

from evomerge_contract.genome import PACKED_ABOVE
from evomerge_contract.manifest import Base, EvoMerge
from evomerge_contract.report import Problem
from evomerge_contract.text import seconds_of
from evomerge_operator.kube.pods import JobView
from evomerge_operator.plan.next import all_sources_failed, failures_in_words, next_keys, too_many_failures
from evomerge_operator.plan.run import Key, Run
from evomerge_operator.services.known import Known
from evomerge_operator.services.live_run import LiveRun

PREPARE, SELECT, WRITE, CONCLUDE, EXPORT = "prepare", "select", "write", "conclude", "export"
STORAGE = "StorageUnavailable"
"""The reason under which a search waits for its storage."""
MAX_STEP_FAILURES = 2
MAX_LOG_BYTES = 512 << 20
_CANDIDATE_BYTES = 1000  # of a MergeCandidate besides its genome and scores
_GENE_BYTES, _PACKED_GENE_BYTES = 11, 4


@dataclass(frozen=True)
class Idle:
    """Nothing is to be done: it has ended, or is being deleted."""


@dataclass(frozen=True)
class Suspend:
    """Unfinished Jobs end; none counts as an attempt."""


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
    """An attempt at prepare, select, write (a stage's winner), conclude or export."""

    step: str


@dataclass(frozen=True)
class StartCandidates:
    """Jobs to start, each with its candidates."""

    batches: tuple[tuple[Key, ...], ...]


Decision = Idle | Suspend | Fail | Delete | Wait | RunStep | StartCandidates


def refusal(manifest: EvoMerge) -> list[Problem]:
    """What keeps a valid manifest from running on a cluster; the CRD says the same, where it is up to date."""
    spec = manifest.spec
    found = {f"spec.models[{i}].{field}": uri for i, model in enumerate(spec.models) for field, uri in _places(model)}
    found |= {f"spec.base.{field}": uri for field, uri in _places(spec.base)} if spec.base else {}
    for index, objective in enumerate(spec.evaluation.objectives):
        field = f"spec.evaluation.objectives[{index}].{objective.evaluator_name}"
        found |= {f"{field}.{split}": uri for split, uri in objective.evaluator.uris.items()}
    problems = [
        Problem(
            path=path, message=f"{uri} is on no server; on a cluster models and data lie at s3:// (models at hf:// too)"
        )
        for path, uri in found.items()
        if not uri.startswith(("s3://", "hf://"))
    ]
    if spec.export is None:
        problems.append(
            Problem(path="spec.export.uri", message="is missing; on a cluster the winner has no other place")
        )
    return problems


def _places(model: Base) -> Iterator[tuple[str, str]]:
    """The fields of a model that say where it lies."""
    yield "uri", model.uri
    if model.adapter is not None:
        yield "adapter", model.adapter


def log_too_large(run: Run) -> str | None:
    """Why the log of a search cannot be kept in the cluster."""
    size = sum(stage.candidates * _bytes_of_candidate(len(stage.genes)) for stage in run.stages)
    if size <= MAX_LOG_BYTES:
        return None
    stages = ", ".join(f"{stage.candidates} candidates of {len(stage.genes)} genes" for stage in run.stages)
    return (
        f"{stages} would hold about {size >> 20} MiB in the cluster's store, "
        f"more than {MAX_LOG_BYTES >> 20}; search fewer candidates or coarser groups"
    )


def _bytes_of_candidate(genes: int) -> int:
    return _CANDIDATE_BYTES + genes * (_PACKED_GENE_BYTES if genes > PACKED_ABOVE else _GENE_BYTES)


def is_over(known: Known) -> bool:
    """Whether nothing more is to be done for it. An edit after a failure is a new beginning."""
    status = known.status
    failed = status.phase == "Failed" and status.observed_generation == known.generation
    return status.phase == "Succeeded" or failed or "deletionTimestamp" in known.document["metadata"]


def decide(known: Known, now: datetime) -> Decision:
    """The one thing to do now. Attempts that have ended are settled before this is asked."""
    if is_over(known):
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
        return Idle()
    ttl = known.document["spec"].get("ttlSecondsAfterFinished")
    finished = known.status.finished_at
    if ttl is not None and finished is not None and now >= finished + timedelta(seconds=ttl):
        return Delete()
    return Idle()


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
    for step in (PREPARE, SELECT, WRITE, CONCLUDE, EXPORT):
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
    live = known.live
    if live is None or known.status.conclusion is not None:
        return None
    lost = all_sources_failed(live.run)
    if lost:
        return Fail("NoSourceScored", lost)
    if too_many_failures(live.run):
        return Fail("TooManyFailures", failures_in_words(live.run))
    if live.run.searched:
        return None
    jobs = list(known.jobs.values())
    slots = manifest.spec.parallelism - len(jobs)
    if slots <= 0 or _backing_off(known, now):
        return Wait()
    together = manifest.spec.worker.candidates_per_pod
    keys = next_keys(live.run, keys_of(jobs, live), slots * together)
    return StartCandidates(_batches(keys, live, slots, together)) if keys else Wait()


def keys_of(jobs: Sequence[JobView], live: LiveRun) -> set[Key]:
    """The candidates that Jobs are attempts at."""
    return {Key(j.attempt.step, i) for j in jobs if live.run.has(j.attempt.step) for i in j.attempt.indices}


def _batches(keys: Sequence[Key], live: LiveRun, slots: int, together: int) -> tuple[tuple[Key, ...], ...]:
    """Candidates of one stage share a pod; one that has failed before goes alone, so that it costs no other."""
    alone = [(key,) for key in keys if live.failures(key)]
    fresh = [key for key in keys if not live.failures(key)]
    size = min(together, max(1, ceil(len(fresh) / max(1, slots - len(alone)))))
    shared: list[tuple[Key, ...]] = []
    for stage in dict.fromkeys(key.stage for key in fresh):
        of_stage = [key for key in fresh if key.stage == stage]
        shared += [tuple(of_stage[i : i + size]) for i in range(0, len(of_stage), size)]
    return tuple(sorted([*alone, *shared], key=lambda batch: keys.index(batch[0])))[:slots]


def _finishing(known: Known, now: datetime) -> Decision:
    live = known.live
    if live is None or any(not job.attempt.indices for job in known.jobs.values()):
        return Wait()
    if known.status.conclusion is not None:
        return _step_unless_early(known, EXPORT, now)
    if live.run.stage.progress.best() is None:
        return Fail("NoCandidateScored", "no candidate succeeded, so there is nothing to choose from")
    return _step_unless_early(known, _step_after_search(known, live.run), now)


def _step_after_search(known: Known, run: Run) -> str:
    """What comes once the run's stage is searched; with several stages, the next one begins after prepare."""
    if run.pinned is None:
        return CONCLUDE  # it ranks the finalists itself, as it was done when that run was begun
    several = len(run.manifest.spec.stages) > 1
    over = next((stage for stage in known.status.stages if stage.name == run.stage.name), None)
    if over is None:
        return SELECT if known.status.selected is None else WRITE if several else CONCLUDE
    return PREPARE if over.digest is None else CONCLUDE


def _backing_off(known: Known, now: datetime) -> bool:
    return known.starts_at is not None and now < known.starts_at
