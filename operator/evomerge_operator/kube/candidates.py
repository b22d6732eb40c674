"""MergeCandidates: the search log, one object a line."""

from evomerge_contract.candidate import AskedFields, Candidate, EndedFields, Genome, fields_of
from evomerge_contract.genome import genome_of
from evomerge_contract.recipe import Recipe
from evomerge_contract.resource import API_VERSION, MERGE_CANDIDATE
from evomerge_contract.status import CandidateSpec, CandidateStatus
from evomerge_operator.kube.objects import STAGE_LABEL, Document, Parent, candidate_name


def candidate_document(parent: Parent, spec: CandidateSpec) -> Document:
    """A MergeCandidate that has been asked for."""
    name = candidate_name(parent, spec.stage, spec.index)
    metadata = parent.metadata(name, **{STAGE_LABEL: spec.stage})
    return {"apiVersion": API_VERSION, "kind": MERGE_CANDIDATE, "metadata": metadata, "spec": spec.wire()}


def genome_in(spec: CandidateSpec) -> Genome | None:
    """The genome of a MergeCandidate; a baseline has none.

    Raises:
        ValueError: its text is that of no genome.
    """
    return None if spec.genome is None else genome_of(spec.genome)


def finished_candidate(
    spec: CandidateSpec, status: CandidateStatus, genome: Genome | None, recipe: Recipe | None
) -> Candidate | None:
    """The line of the log that a MergeCandidate holds, None while it is unfinished; `recipe` is a baseline's."""
    if status.outcome is None:
        return None
    fields = fields_of(spec, AskedFields) | fields_of(status, EndedFields)
    attempts = max(1, status.attempts)
    return Candidate(**fields, genome=genome, recipe=recipe, outcome=status.outcome, attempts=attempts)


def finished_status(candidate: Candidate, before: CandidateStatus, report_dir: str) -> CandidateStatus:
    """The status of a MergeCandidate whose outcome is `candidate`."""
    report_uri = f"{report_dir}/{candidate.report.removeprefix('sha256:')}.json" if candidate.report else None
    return CandidateStatus(
        **fields_of(candidate, EndedFields),
        outcome=candidate.outcome,
        report_uri=report_uri,
        attempts=before.attempts + 1,
        failures=before.failures + (candidate.outcome == "Failed"),
        disruptions=before.disruptions,
        waits=before.waits,
    )


def identity_of(document: Document) -> Document:
    """What a write to an object needs of it."""
    return {"metadata": {key: document["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion")}}
