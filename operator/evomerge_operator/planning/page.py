"""What a helper process has read from a page of a list of MergeCandidates."""

from dataclasses import dataclass, field

from evomerge_contract.candidate import Candidate, Genome
from evomerge_contract.status import CandidateStatus
from evomerge_operator.kube.objects import Document
from evomerge_operator.plan.run import Key


@dataclass(frozen=True)
class PageItem:
    """What a MergeCandidate says."""

    key: Key
    document: Document
    """What a write to it needs."""
    status: CandidateStatus
    finished: Candidate | None
    """Without its genome."""
    genome: Genome | None
    """Of a candidate that is not finished."""


@dataclass(frozen=True)
class Page:
    """A page of a list of MergeCandidates."""

    proposer: bytes
    """After it was shown the page."""
    items: list[PageItem] = field(default_factory=list)
    following: str = ""
    """How to ask for the next page; empty: there is none."""
    problem: str | None = None
    """Why the search cannot be gone on with."""
