"""How an attempt ended, decided from its Job, its pod and what the pod said."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from evomerge_contract.candidate import FailureReason
from evomerge_contract.exits import EXIT_INVALID_INPUT, EXIT_TRY_AGAIN
from evomerge_contract.manifest import EvoMergeSpec
from evomerge_contract.note import read_note
from evomerge_contract.report import Report
from evomerge_contract.task import Task
from evomerge_operator.kube.pods import JobView, PodView, failure_of
from evomerge_operator.mistakes import in_fields

_DEAD_NODE = timedelta(seconds=60)
"""A pod that should have been gone for so long is on a node that does not answer."""
_POD_GRACE = timedelta(seconds=10)  # Job and pod come by different watches


@dataclass(frozen=True)
class Reported:
    """It reported on every task."""

    reports: list[Report]


@dataclass(frozen=True)
class Failed:
    """It failed by itself, and reported on none."""

    reason: FailureReason
    message: str


@dataclass(frozen=True)
class Disrupted:
    """Its pod was lost; that is nobody's failure."""

    message: str


@dataclass(frozen=True)
class Waits:
    """Storage could not be read or written; the same again later."""

    message: str


@dataclass(frozen=True)
class Wrong:
    """The input is wrong; the same again would end the same."""

    message: str


Ending = Reported | Failed | Disrupted | Waits | Wrong


def has_ended(job: JobView, pod: PodView | None, now: datetime, gone: bool) -> bool:
    """Whether nothing more is to come of a Job."""
    if gone or (pod is not None and pod.ended):
        return True
    if pod is not None and pod.due is not None and now - pod.due > _DEAD_NODE:
        return True
    # Finished without a pod: it was deleted together with its node, say.
    return job.finished and pod is None and now - job.created > _POD_GRACE


def ending_of(pod: PodView | None, tasks: Sequence[Task], spec: EvoMergeSpec) -> Ending:
    """How an attempt at `tasks` of a manifest's `spec` has ended. Scores are believed at exit code 0 only."""
    if pod is None:
        return Disrupted("its pod is gone, with all that it might have said")
    if not pod.ended:
        return Disrupted(pod.disruption or "its pod was taken away before it ended")
    exit_code = pod.exit.code if pod.exit is not None else None
    reports = read_note(pod.exit.message, tasks) if pod.exit is not None else None
    reports = reports and [in_fields(report, spec) for report in reports]
    if exit_code == 0 and reports is not None:
        return Reported([_with_host(_killed_for_memory(r, pod), pod) for r in reports])
    if pod.timed_out:  # whatever the worker made of the signal
        return Failed(*failure_of(pod))
    if pod.disruption is not None:
        return Disrupted(pod.disruption)
    if exit_code == EXIT_TRY_AGAIN:
        return Waits(_words(reports, pod))
    if exit_code == EXIT_INVALID_INPUT:
        return Wrong(_words(reports, pod))
    return Failed(*failure_of(pod))


def _killed_for_memory(report: Report, pod: PodView) -> Report:
    """The worker outlives a session that was killed; only the container's state says that it was for memory."""
    if report.reason == "Crashed" and pod.exit is not None and pod.exit.reason == "OOMKilled":
        return report.model_copy(update={"reason": "OutOfMemory", "message": failure_of(pod)[1]})
    return report


def _with_host(report: Report, pod: PodView) -> Report:
    return report.model_copy(update={"host": pod.node})


def _words(reports: Sequence[Report] | None, pod: PodView) -> str:
    said = [r.message for r in reports or () if r.reason in ("InvalidInput", "TryAgain") and r.message]
    if said:
        return said[0]
    return (pod.exit.message[:500] if pod.exit else "") or "the worker gave no reason; its log may"
