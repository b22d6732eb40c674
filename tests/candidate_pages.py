"""MergeCandidates as the API server has them, in pages of a list, for tests of how they are read."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from evomerge_contract.candidate import Candidate
from evomerge_contract.report import EvaluateResult, Report
from evomerge_contract.status import CandidateStatus
from evomerge_operator.kube.candidates import candidate_document, finished_status
from evomerge_operator.plan.proposer import Start
from evomerge_operator.plan.run import BASELINES, Key
from evomerge_operator.plan.settle import settle
from evomerge_operator.planning import calls
from evomerge_operator.services.act import candidate_spec
from evomerge_operator.services.known import Known
from evomerge_operator.services.live_run import LiveRun
from kube_documents import Document, live_of


def by_index(start: Start) -> float:
    """A tenth a candidate: later ones are better."""
    return start.key.index / 10


def settled(live: LiveRun, start: Start, score: float | None) -> Candidate:
    """What a report with this score, or of a failure, makes of a start."""
    fields: dict[str, Any] = {"outcome": "Failed", "reason": "NotFinite", "message": "no"}
    if score is not None:
        fields = {"outcome": "Succeeded", "evaluate": EvaluateResult(scores={"sums": score})}
    candidate = settle(live.run, start, Report(task=start.task.digest, kind="evaluate", **fields))
    assert candidate is not None
    return candidate


def document_of(known: Known, live: LiveRun, start: Start, status: Document | None = None) -> Document:
    """The MergeCandidate of a start."""
    made = candidate_document(known.parent, candidate_spec(live.run, start))
    made["metadata"] |= {"uid": "u", "resourceVersion": "1"}
    return made | {"status": status or {}}


def stored(
    known: Known, count: int, score: Callable[[Start], float | None] = by_index, baselines: bool = True
) -> list[Document]:
    """The finished MergeCandidates of the baselines and of so many candidates, in the order of the log."""
    live = live_of(known)
    proposer = live.proposer
    keys = [Key(BASELINES, index) for index in range(len(live.run.baselines) if baselines else 0)]
    keys += [Key(live.run.stage.name, index) for index in range(count)]
    outcomes: list[tuple[int, Any]] = []
    documents = []
    for key in keys:
        proposer, [start] = calls.starts(proposer, outcomes, [key], {})
        candidate = settled(live, start, score(start))
        outcomes = [] if key.stage == BASELINES else [(key.index, candidate.told)]
        status = finished_status(candidate, CandidateStatus(), "s3://out").wire()
        documents.append(document_of(known, live, start, status))
    return documents


def page(documents: Sequence[Document], following: str = "") -> bytes:
    """A page of a list."""
    return json.dumps({"metadata": {"continue": following}, "items": list(documents)}).encode()


def pages(documents: Sequence[Document], size: int) -> Iterator[bytes]:
    """A list in pages of `size` objects."""
    for first in range(0, max(1, len(documents)), size):
        last = first + size >= len(documents)
        yield page(documents[first : first + size], "" if last else f"after-{first}")


def read(known: Known, documents: Sequence[Document], size: int = 1000) -> tuple[LiveRun, str | None]:
    """A run that has read a list in pages of `size`, and what keeps it from being gone on with."""
    live = live_of(known)
    for text in pages(documents, size):
        found = calls.read(live.proposer, text)
        if found.problem is not None:
            return live, found.problem
        live.read(found)
    return live, None
