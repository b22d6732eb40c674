"""How an EvoMerge stands, in the words of its status: phase, conditions, figures, and why it stands still."""

import re
from collections import Counter
from datetime import datetime, timedelta

from evomerge_contract.status import Condition, ConditionType, EvoMergeStatus, Phase
from evomerge_contract.verdict import in_one_sentence
from evomerge_operator.kube.pods import JobView
from evomerge_operator.services.decide import (
    EXPORT,
    PREPARE,
    Decision,
    Fail,
    Suspend,
    seconds_active,
    waits_for_storage,
)
from evomerge_operator.services.known import Known

_QUIET = timedelta(seconds=10)
"""A pod may take so long to be scheduled before that is reported."""
_SHOWN = 400
_MESSAGE = 4000
_IMAGE = "see spec.worker.image, and imagePullSecrets in spec.worker.podTemplate"
_ADVICE = {
    "ErrImagePull": _IMAGE,
    "ImagePullBackOff": _IMAGE,
    "InvalidImageName": _IMAGE,
    "CreateContainerConfigError": "see the Secrets and ConfigMaps that spec.storage names",
    "FailedMount": "see spec.worker.cache, and the Secrets and ConfigMaps that spec.storage names",
    "Unschedulable": "see spec.worker.resources, spec.worker.podTemplate and the nodes",
    "FailedCreate": "see spec.worker.podTemplate, and the namespace's quota, limits and Pod Security level",
}
"""What to look at, by the reason that Kubernetes gives."""


def not_started(known: Known) -> list[JobView]:
    """Jobs whose pod has not begun to work."""
    return [job for job in known.jobs.values() if _started(known, job) is None]


def _started(known: Known, job: JobView) -> datetime | None:
    pod = known.pods.get(job.name)
    return pod.started if pod is not None else None


def what_holds(known: Known, job: JobView) -> tuple[str, str] | None:
    """Reason and message of what keeps the pod of a Job from starting, if anything is known of it."""
    pod = known.pods.get(job.name)
    said = pod.pending if pod is not None else None
    return said or known.trouble.get(pod.uid if pod is not None else job.uid)


def obstacle(known: Known, now: datetime) -> tuple[str, str] | None:
    """The commonest reason why pods do not start, and how many it holds up."""
    found: Counter[tuple[str, str]] = Counter()
    for job in not_started(known):
        if now - job.began < _QUIET:
            continue
        said = what_holds(known, job)
        if job.queued:
            said = ("Queued", "the queue has not admitted the Job yet")
        if said is not None:
            found[said] += 1
    if not found:
        return None
    (reason, message), count = found.most_common(1)[0]
    advice = f"; {_ADVICE[reason]}" if reason in _ADVICE else ""
    return reason, f"{count} pod{'s' if count > 1 else ''} cannot start: {message[:_SHOWN]}{advice}"


def _is_queued(known: Known) -> bool:
    """Whether a queue holds back all there is to do: that time is not the search's."""
    return bool(known.jobs) and all(job.queued for job in known.jobs.values())


def status_of(known: Known, decision: Decision, now: datetime) -> EvoMergeStatus:
    """The status that follows from what is known and decided; figures and conditions are made anew."""
    phase, reason, message = _phase(known, decision, now)
    reason, message = _word(reason), message and message[:_MESSAGE]
    before, live = known.status, known.live
    ended = phase in ("Succeeded", "Failed")
    working = not ended and phase != "Suspended" and not _is_queued(known)
    stage = live.run.stage if live else None
    return EvoMergeStatus(
        observed_generation=known.observed_generation,
        phase=phase,
        stage=stage.name if stage else None,
        reason=reason,
        message=message,
        candidates=f"{len(stage.progress.finished)}/{stage.candidates}" if stage else None,
        done=live.done if live else 0,
        best=_figure(stage.progress.best() if stage else None),
        best_source=_figure(live.run.best_source() if live else None),
        conditions=_conditions(known, phase, reason, message, now),
        selected=before.selected if before.conclusion is None else None,
        stages=before.stages,
        conclusion=before.conclusion,
        exported=before.exported,
        active_seconds=before.active_seconds if working and before.active_since else seconds_active(known, now),
        active_since=(before.active_since or now) if working else None,
        finished_at=(before.finished_at or now) if ended else None,
        steps=before.steps,
    )


def _word(reason: str | None) -> str | None:
    """A reason as a status may hold it: anybody may write Events, with any words in them."""
    if not reason:
        return None
    word = re.sub(r"[^A-Za-z0-9_,:]", "_", reason)[:199].strip("_,:")
    return word if word[:1].isalpha() else f"Reason_{word}".rstrip("_")


_FIGURES = {"candidates": None, "done": 0, "best": None, "best_source": None}


def only_figures(before: EvoMergeStatus, after: EvoMergeStatus) -> bool:
    """Whether no more than the figures of the search differ: those need not be written at every candidate."""
    return before.model_copy(update=_FIGURES) == after.model_copy(update=_FIGURES)


def _phase(known: Known, decision: Decision, now: datetime) -> tuple[Phase, str | None, str | None]:
    """Phase, reason and message. What ended before stays as it ended."""
    before = known.status
    if isinstance(decision, Fail):
        return "Failed", decision.reason, decision.message
    if isinstance(decision, Suspend):
        return "Suspended", "Suspended", "spec.suspend is set; unset it to go on"
    if before.exported is not None:
        return "Succeeded", None, _result(known)
    if waits_for_storage(known):
        return "Waiting", before.reason, before.message
    stuck = obstacle(known, now) or known.pending or known.overloaded
    if stuck is not None and len(not_started(known)) == len(known.jobs):
        return "Waiting", *stuck
    reason, message = stuck if stuck is not None else (None, None)
    return _working_phase(known), reason, message


def _working_phase(known: Known) -> Phase:
    if known.prepared is None or any(j.attempt.kind == PREPARE for j in known.jobs.values()):
        return "Preparing"
    if known.status.conclusion is not None or any(j.attempt.kind == EXPORT for j in known.jobs.values()):
        return "Exporting"
    return "Concluding" if known.live is not None and known.live.run.searched else "Searching"


def _result(known: Known) -> str:
    conclusion = known.status.conclusion
    return "the winner is exported" if conclusion is None else in_one_sentence(conclusion)


def _conditions(known: Known, phase: Phase, reason: str | None, message: str | None, now: datetime) -> list[Condition]:
    standing = phase in ("Waiting", "Suspended", "Failed")
    accepted = reason != "InvalidManifest"
    prepared = known.prepared is not None
    why, words = reason or phase, message or ""
    made: list[tuple[ConditionType, bool, str, str]] = [
        ("Accepted", accepted, "Accepted" if accepted else why, "" if accepted else words),
        ("Prepared", prepared, "Prepared" if prepared else why, "" if prepared else words),
        ("Progressing", not standing and phase != "Succeeded", why, words),
        ("Complete", phase == "Succeeded", why, words),
    ]
    return [_condition(known, *parts, now) for parts in made]


def _condition(known: Known, kind: ConditionType, true: bool, reason: str, message: str, now: datetime) -> Condition:
    status = "True" if true else "False"
    before = next((c for c in known.status.conditions if c.type == kind), None)
    changed = before is None or before.status != status
    return Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message[:4000],
        last_transition_time=now if changed or before is None else before.last_transition_time,
        observed_generation=known.observed_generation,
    )


def _figure(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"
