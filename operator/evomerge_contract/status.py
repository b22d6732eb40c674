"""What the cluster's resources hold besides the manifest: an EvoMerge's status, a MergeCandidate's spec and status."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, ConfigDict, Field, FiniteFloat, StringConstraints

from evomerge_contract.base import Contract, Digest, StageName
from evomerge_contract.candidate import AskedFields, EndedFields, OutcomeName
from evomerge_contract.manifest import Uri
from evomerge_contract.report import ConcludeResult, SelectResult

Phase = Literal["Preparing", "Searching", "Waiting", "Suspended", "Concluding", "Exporting", "Succeeded", "Failed"]
ConditionType = Literal["Accepted", "Prepared", "Progressing", "Complete"]
Reason = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=200)]
"""A word for programs, in CamelCase, as Kubernetes has them in conditions."""
Message = Annotated[str, StringConstraints(max_length=4000)]
GenomeText = Annotated[
    str,
    StringConstraints(
        pattern=r"^(-?(0|[1-9][0-9]{0,5})(\.[0-9]{1,6})?(,-?(0|[1-9][0-9]{0,5})(\.[0-9]{1,6})?)*|[36]:[A-Za-z0-9+/]+=*)$",
        max_length=1_000_000,
    ),
]
"""The genes in the space's order, in one of the two forms of `genome_text`."""


class Told(Contract):
    """What the operator has told in a status. Fields that it does not know are passed over: during an upgrade the CRDs
    are the new ones while the operator is still the old one."""

    model_config = ConfigDict(extra="ignore")


class Condition(Told):
    """A standard Kubernetes condition."""

    type: ConditionType = Field(description="What it is about.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it is so.")
    reason: Reason = Field(description="Why, in a word.")
    message: Message = Field("", description="What is so, and what to do about it.")
    last_transition_time: AwareDatetime = Field(description="When `status` last became what it is.")
    observed_generation: int | None = Field(None, ge=0, description="The metadata.generation that this speaks of.")


class StepCounters(Told):
    """The ended attempts of a step that is no candidate (prepare, select, write, conclude, export)."""

    succeeded: int = Field(0, ge=0, description="Attempts that ended well.")
    failures: int = Field(0, ge=0, description="Attempts that failed by themselves.")
    disruptions: int = Field(0, ge=0, description="Attempts whose pod was lost.")
    waits: int = Field(0, ge=0, description="Attempts that asked to be made again later.")


class StageStatus(Told):
    """A stage that is over, of several."""

    name: StageName = Field(description="The stage.")
    selected: SelectResult = Field(description="Its finalists, ranked on select items.")
    uri: Uri = Field(description="Where its winner lies until the run ends.")
    digest: Digest | None = Field(None, description="Of the winner's content, once later stages can use it.")


class EvoMergeStatus(Told):
    """What has become of an EvoMerge. All of it is written by the operator, and by nobody else."""

    observed_generation: int | None = Field(None, ge=0, description="The metadata.generation that this speaks of.")
    phase: Phase | None = Field(None, description="What is going on now.")
    stage: StageName | None = Field(None, description="The stage that is searched, or was last.")
    reason: Reason | None = Field(None, description="Why it stands still or has failed, in a word.")
    message: Message | None = Field(None, description="Why, in a sentence, and what to do about it.")
    candidates: str | None = Field(
        None,
        pattern=r"^[0-9]{1,7}/[0-9]{1,7}$",
        max_length=15,
        description="Finished candidates of all, as in 312/1000.",
    )
    done: int = Field(0, ge=0, description="Finished candidates.")
    best: str | None = Field(None, max_length=32, description="The best fitness so far, on search items.")
    best_source: str | None = Field(None, max_length=32, description="The best source's fitness, on search items.")
    conditions: list[Condition] = Field([], max_length=8, description="Accepted, Prepared, Progressing, Complete.")
    selected: SelectResult | None = Field(
        None, description="The finalists, ranked on select items; part of `conclusion` once that is there."
    )
    stages: list[StageStatus] = Field(
        [],
        max_length=12,
        exclude_if=lambda stages: not stages,
        description="Of several stages, those that are over.",
    )
    conclusion: ConcludeResult | None = Field(None, description="The winner, and the figures that prove it.")
    exported: Uri | None = Field(None, description="Where the winner lies, once it is there whole.")
    active_seconds: FiniteFloat = Field(
        0.0, ge=0, description="How long it has worked up to `activeSince`; the deadline counts these."
    )
    active_since: AwareDatetime | None = Field(None, description="Since when it works; absent while suspended.")
    finished_at: AwareDatetime | None = Field(None, description="When it succeeded or failed.")
    steps: dict[str, StepCounters] = Field(
        {}, max_length=8, description="The attempts of prepare, select, write, conclude, export."
    )


class CandidateSpec(AskedFields):
    """A candidate as it was asked for. Never changes. A baseline has a `name` and a `role`, and no `genome`."""

    genome: GenomeText | None = Field(
        None, description="The genes in the space's order: decimals with commas between, or packed where they are many."
    )


class CandidateStatus(EndedFields, Told):
    """What has become of a candidate. Without an `outcome`, it is not finished."""

    outcome: OutcomeName | None = Field(None, description="Absent until the candidate is finished.")
    report_uri: Uri | None = Field(None, description="Where the full report lies, with every item's score.")
    attempts: int = Field(0, ge=0, description="Jobs made for it.")
    failures: int = Field(0, ge=0, description="Attempts that failed by themselves.")
    disruptions: int = Field(0, ge=0, description="Attempts whose pod was lost.")
    waits: int = Field(0, ge=0, description="Attempts that asked to be made again later.")
