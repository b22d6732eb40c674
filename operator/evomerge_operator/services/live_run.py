"""A run as its MergeCandidates report it, and what the planner has made of it."""

from dataclasses import dataclass, field

from evomerge_contract.candidate import Candidate
from evomerge_contract.status import CandidateStatus
from evomerge_contract.task import Task
from evomerge_operator.kube.candidates import identity_of
from evomerge_operator.kube.objects import Document
from evomerge_operator.plan.proposer import Start
from evomerge_operator.plan.run import Key, Run, StageRun
from evomerge_operator.planning.page import Page


@dataclass
class Open:
    """A MergeCandidate that is not finished."""

    document: Document
    """What a write to it needs."""
    status: CandidateStatus

    @property
    def ended_attempts(self) -> int:
        """How many of its Jobs have ended and are counted."""
        return self.status.attempts


@dataclass
class LiveRun:
    """Everything known of the candidates of a prepared EvoMerge.

    The proposer of its stage is only passed on here, from one helper process to the next.
    """

    run: Run
    proposer: bytes
    open: dict[Key, Open] = field(default_factory=dict)
    disruptions: dict[Key, int] = field(default_factory=dict)
    starts: dict[Key, Start] = field(default_factory=dict)
    """Of candidates that are not finished, as far as they were needed."""
    step_tasks: dict[str, Task] = field(default_factory=dict)
    """Of the steps after the search, as far as they were needed."""

    def read(self, page: Page) -> None:
        """Take over a page of MergeCandidates."""
        self.proposer = page.proposer
        for item in page.items:
            if item.genome is not None:
                self.run.stage.progress.ask(item.key.index, item.genome)
            self.saw(item.key, item.document, item.status, item.finished, told=True)

    def begin(self, stage: StageRun, proposer: bytes) -> None:
        """Begin the next stage."""
        self.run.stages.append(stage)
        self.proposer = proposer
        self.step_tasks.clear()

    def saw(
        self, key: Key, document: Document, status: CandidateStatus, finished: Candidate | None, *, told: bool = False
    ) -> None:
        """Take over what a MergeCandidate is now; `told`: the search knows its outcome already."""
        progress = self.run.progress(key.stage)
        if status.disruptions:
            self.disruptions[key] = status.disruptions
        if finished is None:
            self.open[key] = Open(identity_of(document), status)
            progress.failures[key.index] = status.failures
        else:
            self.open.pop(key, None)
            self.starts.pop(key, None)
            progress.finish(finished, told=told)

    def has(self, key: Key) -> bool:
        """Whether there is a MergeCandidate."""
        return key in self.open or (self.run.has(key.stage) and key.index in self.run.progress(key.stage).finished)

    @property
    def done(self) -> int:
        """Finished candidates, baselines aside."""
        return sum(len(stage.progress.finished) for stage in self.run.stages)

    def failures(self, key: Key) -> int:
        """Attempts at an unfinished candidate that failed by themselves; lost ones do not count."""
        return self.run.progress(key.stage).failures.get(key.index, 0)
