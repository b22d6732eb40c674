"""What a search cost and what failed: figures over all candidates."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from evomerge_contract.candidate import PHASES, Candidate


@dataclass(frozen=True)
class Failure:
    """Candidates (or baselines) that failed for one reason, with the message of the first."""

    reason: str
    names: list[str]
    message: str


@dataclass(frozen=True)
class PhaseShare:
    """Where time went: median seconds a candidate, and the share of all candidates' time."""

    name: str
    median: float
    share: float


def failures(candidates: Iterable[Candidate]) -> list[Failure]:
    """Failures by reason, the most frequent first."""
    failed = [c for c in candidates if c.outcome == "Failed"]
    counted = Counter(c.reason or "Error" for c in failed).most_common()
    return [
        Failure(
            reason,
            [c.name or str(c.index) for c in failed if (c.reason or "Error") == reason],
            next((c.message for c in failed if (c.reason or "Error") == reason and c.message), ""),
        )
        for reason, _ in counted
    ]


def phases(candidates: Iterable[Candidate]) -> list[PhaseShare]:
    """The phases of the candidates that succeeded, `other` being what no phase accounts for; empty if none is timed."""
    timed = [c.seconds for c in candidates if c.outcome == "Succeeded" and c.seconds.get("total")]
    if not timed:
        return []
    whole = sum(s["total"] for s in timed)
    by_phase = {name: [s.get(name, 0.0) for s in timed] for name in PHASES}
    by_phase["other"] = [max(0.0, s["total"] - sum(s.get(p, 0.0) for p in PHASES)) for s in timed]
    return [PhaseShare(name, median(values), sum(values) / whole) for name, values in by_phase.items()]
