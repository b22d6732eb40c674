"""A candidate of the search, or a baseline: what a line of the log and a MergeCandidate hold."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from evomerge_contract.base import Contract, Digest, StageName
from evomerge_contract.recipe import Recipe

OutcomeName = Literal["Succeeded", "Failed"]
Genome = tuple[float, ...]
Role = Literal["source", "average", "default", "base", "stage"]
"""How a baseline may be read."""
PHASES = ("pull", "load", "merge", "evaluate")
"""What a candidate's seconds are spent on, in the order of a note's `p`."""
MESSAGE_CHARACTERS = 1000
FailureReason = Literal[
    "Crashed", "TimedOut", "Garbage", "OutOfMemory", "Evicted", "NotFinite", "InvalidInput", "TryAgain", "Error"
]


class GeneLabel(Contract):
    """What a gene is of: a parameter of a group of tensors, for one model or (None) the same for all."""

    parameter: str
    group: str
    model: str | None = None


class AskedFields(Contract):
    """What is fixed when a candidate is asked for."""

    stage: StageName = Field(description='The stage; "baselines" for the baselines.')
    index: int = Field(ge=0, le=9_999_999, description="The place in the stage's sequence.")
    generation: int = Field(0, ge=0, le=9_999_999, description="The generation of the algorithm.")
    role: Role | None = Field(None, description="What a baseline is; absent for a candidate of the search.")
    name: str | None = Field(None, max_length=63, description="A baseline's name.")
    algorithm: str = Field(max_length=63, description="The algorithm with its version.")
    recipe_digest: Digest = Field(max_length=71, description="Of the recipe that the genome decodes to.")


class EndedFields(Contract):
    """What an evaluation came to, besides whether it succeeded."""

    fitness: FiniteFloat | None = Field(None, description="Higher is better. Absent when the candidate failed.")
    scores: dict[str, FiniteFloat] = Field(
        {}, max_length=8, description="Per objective, in the metric's own direction."
    )
    reason: FailureReason | None = Field(None, description="Why it failed, in a word.")
    message: str | None = Field(None, max_length=MESSAGE_CHARACTERS, description="Why it failed, in a sentence.")
    report: Digest | None = Field(None, description="The digest of the task that the report answers.")
    seconds: dict[str, FiniteFloat] = Field(
        {}, max_length=16, description="Seconds of each phase of the last attempt: pull, load, merge, evaluate, total."
    )
    host: str | None = Field(None, max_length=253, description="The node that it ran on.")


class Candidate(AskedFields, EndedFields):
    """A finished candidate.

    `genome` holds the genes in the space's order and units; a baseline has a `name`, a `role` and a `recipe` instead.
    `fitness` is None exactly when the candidate failed. `seconds`, `host` and `attempts` are the only fields that may
    differ between two runs of one search.
    """

    genome: Genome | None = None
    recipe: Recipe | None = None
    outcome: OutcomeName
    attempts: Annotated[int, Field(ge=1)] = 1

    @property
    def told(self) -> Mapping[str, float] | None:
        """What a search is told of it: the scores by objective, None where it failed."""
        return self.scores if self.outcome == "Succeeded" else None

    def identical_part(self) -> dict[str, object]:
        """The fields that two runs of one search must share bit for bit."""
        wire = self.wire()
        for varying in ("attempts", "seconds", "host"):
            wire.pop(varying, None)
        return wire


def fields_of(record: Contract, kind: type[Contract]) -> dict[str, Any]:
    """The fields of `kind` that a record shares with it, by name."""
    return {name: getattr(record, name) for name in kind.model_fields}
