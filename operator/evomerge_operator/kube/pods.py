"""What a Job and its pod tell of an attempt: where it stands, how it ended, what keeps it from starting."""

from dataclasses import dataclass
from datetime import datetime

from evomerge_contract.candidate import FailureReason
from evomerge_operator.kube.jobs import CONTAINER, Attempt, attempt_of
from evomerge_operator.kube.objects import CONFIG_MAPS, DIGEST, Document

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_CANNOT_START = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "RegistryUnavailable",
        "ImageInspectError",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    }
)
_NEVER_RAN = frozenset({"ContainerStatusUnknown", "StartError", "ContainerCannotRun"})
"""Reasons that speak of the node, not of the worker."""


@dataclass(frozen=True)
class JobView:
    """A Job, as far as it matters here."""

    name: str
    uid: str
    attempt: Attempt
    digest: str
    created: datetime
    began: datetime
    """Since when its pod may start: a queue may have held it back before."""
    queued: bool
    """A queue holds it back: its time has not begun."""
    finished: bool
    config_maps: tuple[str, ...]
    """ConfigMaps that were made for it alone."""


@dataclass(frozen=True)
class Exit:
    """How the worker container ended."""

    code: int
    reason: str
    message: str


@dataclass(frozen=True)
class PodView:
    """A pod, as far as it matters here."""

    uid: str
    job: str
    """The Job's name."""
    job_uid: str
    """A later Job may bear the same name."""
    node: str | None
    started: datetime | None
    """When the worker container began."""
    due: datetime | None
    """When it should be gone, if it was deleted."""
    ended: bool
    exit: Exit | None
    disruption: str | None
    """What took the pod away, if something did."""
    timed_out: bool
    evicted: str | None
    """Why the kubelet ended it, when it was for a limit of the pod's own."""
    pending: tuple[str, str] | None
    """Reason and message of what keeps it from starting."""


def view_job(job: Document) -> JobView:
    """A Job's view.

    Raises:
        ValueError, KeyError: it was not made here.
    """
    metadata, status = job["metadata"], job.get("status") or {}
    conditions = {c["type"] for c in status.get("conditions") or () if c.get("status") == "True"}
    # Between a queue's word and the Job controller's deed there is no start time either.
    held = bool(job["spec"].get("suspend")) or "startTime" not in status
    return JobView(
        name=metadata["name"],
        uid=metadata["uid"],
        attempt=attempt_of(job),
        digest=metadata["annotations"][DIGEST],
        created=time_of(metadata["creationTimestamp"]),
        began=time_of(status.get("startTime") or metadata["creationTimestamp"]),
        queued=QUEUE_LABEL in metadata["labels"] and held,
        finished=bool(conditions & {"Complete", "Failed"}),
        config_maps=tuple(filter(None, metadata["annotations"].get(CONFIG_MAPS, "").split(","))),
    )


def view_pod(pod: Document) -> PodView | None:
    """A pod's view; None when no Job owns it."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    owner = next((o for o in metadata.get("ownerReferences") or () if o.get("kind") == "Job"), None)
    if owner is None:
        return None
    statuses = status.get("containerStatuses") or ()
    state: Document = next((s.get("state") or {} for s in statuses if s.get("name") == CONTAINER), {})
    terminated = state.get("terminated")
    began = (terminated or state.get("running") or {}).get("startedAt")
    exit = _exit(terminated)
    deleted = metadata.get("deletionTimestamp")
    return PodView(
        uid=metadata["uid"],
        job=owner["name"],
        job_uid=owner["uid"],
        node=(pod.get("spec") or {}).get("nodeName"),
        started=time_of(began) if began else None,
        due=time_of(deleted) if deleted else None,
        # A container that has ended stays so, whatever other containers somebody has put beside it.
        ended=status.get("phase") in ("Succeeded", "Failed") or exit is not None,
        exit=exit,
        disruption=_disruption(metadata, status, exit),
        timed_out=status.get("reason") == "DeadlineExceeded",
        evicted=status.get("message") or "" if status.get("reason") == "Evicted" else None,
        pending=_pending(status, state),
    )


def time_of(text: str) -> datetime:
    """A Kubernetes time."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def failure_of(pod: PodView) -> tuple[FailureReason, str]:
    """Reason and words for a pod that ended by itself and without a note that can be believed."""
    if pod.timed_out:
        return "TimedOut", "the pod ran longer than its tasks may take together"
    if pod.evicted is not None:
        return "Evicted", f"the pod went over a limit of its own: {pod.evicted}"
    if pod.exit is None:
        return "Crashed", "the pod failed before its worker ended"
    if pod.exit.reason == "OOMKilled":
        return "OutOfMemory", "the container was killed for memory; raise spec.worker.resources.limits.memory"
    if pod.exit.code == 0:
        return "Garbage", f"the worker ended well but said {pod.exit.message[:80]!r} instead of its results"
    said = f": {pod.exit.message[:300]}" if pod.exit.message else ""
    return "Crashed", f"the worker ended with exit code {pod.exit.code}{said}"


def _exit(terminated: Document | None) -> Exit | None:
    if terminated is None:
        return None
    return Exit(int(terminated.get("exitCode", -1)), terminated.get("reason") or "", terminated.get("message") or "")


def _disruption(metadata: Document, status: Document, exit: Exit | None) -> str | None:
    """Kubernetes says so by a condition, by the deletion mark alone when somebody deleted the pod, or by a container
    that never ran, or of whose end its node knows nothing. An eviction without a condition is no disruption: it was for
    a limit of the pod's own."""
    for condition in status.get("conditions") or ():
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            return f"{condition.get('reason')}: {condition.get('message')}"
    if status.get("reason") in ("Evicted", "DeadlineExceeded"):
        return None
    if metadata.get("deletionTimestamp"):
        return "the pod was deleted"
    if status.get("phase") == "Failed" and exit is None:
        return f"{status.get('reason') or 'the pod failed before its worker began'}: {status.get('message', '')}"
    if status.get("reason") in ("NodeLost", "Shutdown", "Terminated"):
        return f"{status['reason']}: {status.get('message', '')}"
    return f"{exit.reason}: {exit.message}" if exit is not None and exit.reason in _NEVER_RAN else None


def _pending(status: Document, state: Document) -> tuple[str, str] | None:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return condition.get("reason") or "Unschedulable", condition.get("message") or "the pod is not scheduled"
    waiting = state.get("waiting") or {}
    if waiting.get("reason") in _CANNOT_START:
        return waiting["reason"], waiting.get("message") or "the container cannot start"
    return None
