"""A candidate of the search, or a baseline: what a line of the log and a MergeCandidate hold."""

from typing import Annotated, Literal

from pydantic import Field

from evomerge_contract.base import Contract, Digest
from evomerge_contract.recipe import Recipe

Outcome = Literal["Succeeded", "Failed"]
Genome = tuple[float, ...]
PHASES = ("pull", "load", "merge", "evaluate")
"""What a candidate's seconds are spent on, in the order of a note's `p`."""
MESSAGE_CHARACTERS = 1000
FailureReason = Literal[
    "Crashed", "TimedOut", "Garbage", "OutOfMemory", "Evicted", "NotFinite", "InvalidInput", "TryAgain", "Error"
]


class Candidate(Contract):
    """A finished candidate.

    `genome` holds the genes in the space's order and units; a baseline has a `name` and a `recipe` instead.
    `fitness` is higher-is-better and None exactly when the candidate failed. `seconds` maps a phase
    (pull, merge, load, evaluate, total) to its seconds; it, `host` and `attempts` are the only fields that may
    differ between two runs of one search.
    """

    stage: str
    index: int = Field(ge=0)
    generation: int = Field(0, ge=0)
    name: str | None = None
    genome: Genome | None = None
    recipe: Recipe | None = None
    recipe_digest: Digest
    algorithm: str
    outcome: Outcome
    fitness: float | None = None
    scores: dict[str, float] = {}
    reason: FailureReason | None = None
    message: str | None = Field(None, max_length=MESSAGE_CHARACTERS)
    report: Digest | None = None
    attempts: Annotated[int, Field(ge=1)] = 1
    seconds: dict[str, float] = {}
    host: str | None = None

    def identical_part(self) -> dict[str, object]:
        """The fields that two runs of one search must share bit for bit."""
        wire = self.wire()
        for varying in ("attempts", "seconds", "host"):
            wire.pop(varying, None)
        return wire
