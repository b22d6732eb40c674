"""The tasks of the steps that are no candidates, and where a cluster's run keeps its reports."""

from pathlib import Path

from evomerge_contract.task import Task
from evomerge_operator import plan
from evomerge_operator.errors import RunError
from evomerge_operator.kube.objects import Parent
from evomerge_operator.prepared import prepare_task
from evomerge_operator.recipes import recipe_text
from evomerge_operator.services.decide import CONCLUDE, PREPARE
from evomerge_operator.services.known import Known

FACTS = "/facts"
"""Where the pod of an export finds the run report."""


def report_dir(export_uri: str, parent: Parent) -> str:
    """Where a run's durable reports lie; another run of the same name, or place, never finds them."""
    return f"{export_uri.rstrip('/')}/reports/{parent.uid}"


def step_tasks(known: Known, step: str) -> list[Task]:
    """The tasks that a Job of a step may have had: prepare's changes once there is a result to compare with."""
    if step == PREPARE and known.prepared is not None and known.manifest is not None and known.manifest.spec.export:
        folder = report_dir(known.manifest.spec.export.uri, known.parent)
        return [step_task(known, step), prepare_task(known.manifest, folder)]
    return [step_task(known, step)]


def step_task(known: Known, step: str) -> Task:
    """The task of prepare, conclude or export.

    Raises:
        RunError: something that should come before it is not there (the caller's mistake).
    """
    manifest, search, conclusion = known.manifest, known.search, known.status.conclusion
    if manifest is None or manifest.spec.export is None:
        raise RunError("there is no manifest to run")
    if step == PREPARE:
        return prepare_task(manifest, report_dir(manifest.spec.export.uri, known.parent), known.prepared)
    if search is None:
        raise RunError(f"{step} comes after the search")
    if step == CONCLUDE:
        return plan.conclude_task(search.run, search.finished)
    if conclusion is None:
        raise RunError(f"{step} comes after the conclusion")
    recipe = plan.winner_recipe(search.run, search.finished, conclusion)
    text = recipe_text(recipe, search.run.manifest, Path("/"))
    out = manifest.spec.export.uri
    return plan.export_task(search.run, search.finished, conclusion, out, facts=FACTS, recipe_text=text)
