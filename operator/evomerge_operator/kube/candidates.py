"""MergeCandidates: the search log, one object a line."""

from typing import Any

from evomerge_contract.candidate import Candidate, Genome
from evomerge_contract.recipe import Recipe
from evomerge_contract.resource import API_VERSION, MERGE_CANDIDATE
from evomerge_contract.status import CandidateSpec, CandidateStatus
from evomerge_operator.kube.objects import STAGE_LABEL, Parent, candidate_name

Document = dict[str, Any]


def candidate_document(parent: Parent, spec: CandidateSpec) -> Document:
    """A MergeCandidate that has been asked for."""
    name = candidate_name(parent, spec.stage, spec.index)
    metadata = parent.metadata(name, **{STAGE_LABEL: spec.stage})
    return {"apiVersion": API_VERSION, "kind": MERGE_CANDIDATE, "metadata": metadata, "spec": spec.wire()}


def finished_candidate(spec: CandidateSpec, status: CandidateStatus, recipe: Recipe | None) -> Candidate | None:
    """The line of the log that a MergeCandidate holds, None while it is unfinished; `recipe` is a baseline's."""
    if status.outcome is None:
        return None
    return Candidate(
        stage=spec.stage,
        index=spec.index,
        generation=spec.generation,
        name=spec.name,
        genome=genome_of(spec.genome) if spec.genome is not None else None,
        recipe=recipe,
        recipe_digest=spec.recipe_digest,
        algorithm=spec.algorithm,
        outcome=status.outcome,
        fitness=status.fitness,
        scores=status.scores,
        reason=status.reason,
        message=status.message,
        report=status.report,
        attempts=max(1, status.attempts),
        seconds=status.seconds,
        host=status.host,
    )


def finished_status(candidate: Candidate, before: CandidateStatus, report_dir: str) -> CandidateStatus:
    """The status of a MergeCandidate whose outcome is `candidate`."""
    report_uri = f"{report_dir}/{candidate.report.removeprefix('sha256:')}.json" if candidate.report else None
    return CandidateStatus(
        outcome=candidate.outcome,
        fitness=candidate.fitness,
        scores=candidate.scores,
        reason=candidate.reason,
        message=candidate.message,
        report=candidate.report,
        report_uri=report_uri,
        attempts=before.attempts + 1,
        failures=before.failures + (candidate.outcome == "Failed"),
        disruptions=before.disruptions,
        waits=before.waits,
        seconds=candidate.seconds,
        host=candidate.host,
    )


def genome_text(genome: Genome) -> str:
    """The genes as decimals with commas between; they lie on a grid of 1e-6, so the text is exact."""
    return ",".join(_decimal(gene) for gene in genome)


def genome_of(text: str) -> Genome:
    """The genome that a text names."""
    return tuple(float(part) for part in text.split(","))


def _decimal(gene: float) -> str:
    text = f"{gene:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
