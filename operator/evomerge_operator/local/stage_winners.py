"""Winners of stages that others follow: written to the run's directory once, then models like any other."""

import shutil

from pydantic import BaseModel

from evomerge_contract.base import canonical_json
from evomerge_contract.candidate import Candidate
from evomerge_contract.report import PrepareResult, SelectResult
from evomerge_contract.task import Source
from evomerge_operator.local.carry_out import Executor, carry_out, error_of, prepare
from evomerge_operator.local.directory import RunDirectory
from evomerge_operator.local.files import write_whole
from evomerge_operator.plan.finish import stage_winner_task
from evomerge_operator.plan.proposer import Proposer
from evomerge_operator.plan.run import Run


class _Written(BaseModel):
    """What is remembered of a winner that was written: by which task, and what it then was."""

    task: str
    digest: str


def leave_winner(
    executor: Executor,
    run: Run,
    proposer: Proposer,
    selected: SelectResult,
    winner: Candidate,
    source: str,
    directory: RunDirectory,
) -> PrepareResult:
    """Make the winner of the run's stage a model of the next stages; what was found of all their models.

    One that was written before, by the same task, is not written again; it must be what it was.
    """
    name = run.stage.name
    folder, record = directory.stages / name, directory.stages / f"{name}.json"
    task = stage_winner_task(proposer, selected, winner, folder.resolve().as_uri())
    written = _Written.model_validate_json(record.read_bytes()) if record.exists() else None
    if written is None or written.task != task.digest:
        record.unlink(missing_ok=True)
        written = None
        report = carry_out(executor, task)
        if report.export is None:
            raise error_of(report, f"writing the winner of {name}{executor.last_words()}", run.manifest)
    made = Source(name=name, uri=task.out, digest=written and written.digest)
    winners = [*run.common.winners, made]
    prepared = prepare(executor, run.manifest, source, directory.reports, proposer.prepared, winners)
    digest = next(found.digest for found in prepared.sources if found.name == name)
    if written is None:
        write_whole(record, canonical_json(_Written(task=task.digest, digest=digest).model_dump()).encode())
    run.stage.winner = made.model_copy(update={"digest": digest})
    return prepared


def drop_winners(directory: RunDirectory) -> None:
    """Remove them when the run has ended: its own winner lies elsewhere."""
    shutil.rmtree(directory.stages, ignore_errors=True)
