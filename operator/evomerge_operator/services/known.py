"""What is known of one EvoMerge: the newest that the API server said, and what was found out from it."""

from collections.abc import Set
from dataclasses import dataclass, field
from datetime import datetime

from evomerge_contract.manifest import EvoMerge
from evomerge_contract.report import PrepareResult
from evomerge_contract.status import EvoMergeStatus, StepCounters
from evomerge_operator.kube.objects import Document, Parent
from evomerge_operator.kube.pods import JobView, PodView, view_job, view_pod
from evomerge_operator.services.live_run import LiveRun


@dataclass
class Known:
    """One EvoMerge, its Jobs and pods, and its run."""

    document: Document
    parent: Parent
    status: EvoMergeStatus
    manifest: EvoMerge | None = None
    """As it was last read: an edit in the middle of a look is for the next one."""
    read_generation: int | None = None
    """The generation that `manifest` is of."""
    prepared: PrepareResult | None = None
    pinned: tuple[str, ...] | None = None
    """The names of the baselines that the run is pinned to; None: it was prepared before there were any."""
    live: LiveRun | None = None
    """The run, once its candidates have been read."""
    jobs: dict[str, JobView] = field(default_factory=dict)
    pods: dict[str, PodView] = field(default_factory=dict)
    """The newest pod of each Job, by the Job's name."""
    gone: set[str] = field(default_factory=set)
    """Jobs that somebody else has deleted, by name."""
    deleted: set[str] = field(default_factory=set)
    """UIDs of Jobs that we have deleted: late news of them is none."""
    observed_at: datetime | None = None
    looked_closer_at: datetime | None = None
    trouble: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Reason and message of what Events say of Jobs without a pod and pods that do not start, by UID."""
    probe_at: datetime | None = None
    """When storage may be tried again."""
    starts_at: datetime | None = None
    """When pods may be started again after some did not start in time."""
    start_backoff: float = 0.0
    pending: tuple[str, str] | None = None
    """Reason and message of why the last start came to nothing, until one does not."""
    plans_at: datetime | None = None
    """When planning may be tried again after it took too much."""
    plan_backoff: float = 0.0
    overloaded: tuple[str, str] | None = None
    """Reason and message of why planning took too much, until it does not."""
    losses: int = 0
    """Looks in a row at which attempts were lost, and none was not."""
    last_loss: str = ""
    """What took the last attempt that was lost."""
    written_at: datetime | None = None
    """When the status was last written."""
    looked_at: int | None = None
    """The generation that the last look began with: an edit in the middle of it is for the next one."""

    @classmethod
    def of(cls, document: Document) -> "Known":
        """What an EvoMerge by itself says."""
        metadata = document["metadata"]
        parent = Parent(metadata["namespace"], metadata["name"], metadata["uid"])
        return cls(document, parent, _status(document))

    @property
    def generation(self) -> int:
        """The generation of the spec."""
        return int(self.document["metadata"].get("generation", 0))

    @property
    def observed_generation(self) -> int:
        """The generation that a status tells of."""
        return self.generation if self.looked_at is None else self.looked_at

    def saw_evomerge(self, document: Document) -> None:
        """A newer state of the resource; an older one that comes late is none."""
        if _version(document) < _version(self.document):
            return
        if document["metadata"].get("generation") != self.document["metadata"].get("generation"):
            self.plans_at, self.plan_backoff = None, 0.0
        self.document = document
        self.status = _status(document)

    def saw_job(self, job: Document, *, deleted: bool) -> None:
        """A newer state of a Job, or its end."""
        uid, name = job["metadata"]["uid"], job["metadata"]["name"]
        if not self.parent.owns(job):
            return
        if deleted:
            if uid in self.deleted:
                self.deleted.discard(uid)
            elif name in self.jobs and self.jobs[name].uid == uid:
                self.gone.add(name)
        elif uid not in self.deleted:
            self.jobs[name] = view_job(job)

    def saw_pod(self, pod: Document, *, deleted: bool) -> None:
        """A newer state of a pod. Of one that vanished the last state is kept: it may hold the results."""
        view = view_pod(pod)
        if view is None or view.job not in self.jobs or self.jobs[view.job].uid != view.job_uid:
            return
        before = self.pods.get(view.job)
        if before is not None and before.uid == view.uid and before.ended and not view.ended:
            return
        if deleted and not view.ended:
            # It went before it ended: whatever took it, it will not end any more.
            self.gone.add(view.job)
        if view.started is not None and (before is None or before.started is None):
            self.pending = None
        self.pods[view.job] = view

    def drop_job(self, name: str) -> None:
        """Forget a Job that we have deleted."""
        job = self.jobs.pop(name, None)
        self.gone.discard(name)
        pod = self.pods.pop(name, None)
        if job is not None:
            self.deleted.add(job.uid)
            self.trouble.pop(job.uid, None)
        if pod is not None:
            self.trouble.pop(pod.uid, None)

    def observed(self, jobs: list[Document], pods: list[Document], before: Set[str], now: datetime) -> None:
        """Take over complete lists: what was there `before` (UIDs of pods) and is not in them is gone."""
        found = {job["metadata"]["name"] for job in jobs if self.parent.owns(job)}
        self.deleted &= {job["metadata"]["uid"] for job in jobs}
        self.gone |= self.jobs.keys() - found
        for job in jobs:
            self.saw_job(job, deleted=False)
        there = {pod["metadata"]["uid"] for pod in pods}
        for name, view in self.pods.items():
            if view.uid in before - there and not view.ended:
                self.gone.add(name)
        for pod in pods:
            self.saw_pod(pod, deleted=False)
        self.observed_at = now

    def mark_stale(self) -> None:
        """Somebody else has written: everything is to be looked at anew."""
        self.observed_at = None
        self.live = None

    def mark_ended(self) -> None:
        """It has ended: what is not needed any more is let go."""
        self.live = None
        self.prepared = None

    @property
    def stage(self) -> str:
        """The name of the stage that is searched, or is the first to be."""
        if self.live is not None:
            return self.live.run.stage.name
        names = [stage["name"] for stage in self.document["spec"]["stages"]]
        return self.status.stage or str(next(iter(names)))

    def counters(self, step: str) -> StepCounters:
        """The ended attempts of a step."""
        return self.status.steps.get(step, StepCounters())

    def ended_attempts(self, step: str) -> int:
        """How many attempts of a step have ended."""
        counters = self.counters(step)
        return counters.succeeded + counters.failures + counters.disruptions + counters.waits

    @property
    def disruptions(self) -> int:
        """All pods that were lost."""
        of_steps = sum(counters.disruptions for counters in self.status.steps.values())
        return of_steps + (sum(self.live.disruptions.values()) if self.live else 0)


def _version(document: Document) -> int:
    return int(document["metadata"].get("resourceVersion", 0))


def _status(document: Document) -> EvoMergeStatus:
    return EvoMergeStatus.model_validate(document.get("status") or {})
