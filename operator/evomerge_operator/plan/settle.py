"""What a report makes of a candidate."""

from math import isfinite

from evomerge_contract.candidate import MESSAGE_CHARACTERS, AskedFields, Candidate, FailureReason
from evomerge_contract.report import Report, fitness_of
from evomerge_contract.task import EvaluateTask
from evomerge_operator.plan.proposer import Start
from evomerge_operator.plan.run import BASELINES, Run

MAX_ATTEMPTS = 2
"""A candidate that failed is tried once more, then its failure is its outcome."""
_HOPELESS = frozenset({"NotFinite"})  # the same again next time: not worth a second attempt


def asked(run: Run, start: Start) -> AskedFields:
    """What is fixed of a candidate from its start."""
    named = run.baselines[start.key.index] if start.key.stage == BASELINES else None
    return AskedFields(
        stage=start.key.stage,
        index=start.key.index,
        generation=0 if named else start.key.index // run.stage.population,
        role=named.role if named and run.pinned is not None else None,
        name=named.name if named else None,
        algorithm=run.stage.version,
        recipe_digest=start.task.recipe.digest,
    )


def settle(run: Run, start: Start, report: Report) -> Candidate | None:
    """The candidate that a report makes of a start; None when it is to be tried again.

    Reports that say the input is wrong, or storage away, are not for this function: they are no candidate's fault.
    """
    attempts = run.progress(start.key.stage).failures.get(start.key.index, 0) + 1
    fitness, reason, message = _judge(start.task, report)
    if fitness is None and attempts < MAX_ATTEMPTS and reason not in _HOPELESS:
        return None
    return Candidate(
        **dict(asked(run, start)),
        genome=start.genome,
        recipe=start.task.recipe if start.key.stage == BASELINES else None,
        outcome="Failed" if fitness is None else "Succeeded",
        fitness=fitness,
        scores=report.evaluate.scores if report.evaluate and fitness is not None else {},
        reason=reason,
        message=message and message[:MESSAGE_CHARACTERS],
        report=None if fitness is None else report.task,
        attempts=attempts,
        seconds=report.seconds,
        host=report.host,
    )


def _judge(task: EvaluateTask, report: Report) -> tuple[float | None, FailureReason | None, str | None]:
    """The fitness that a report tells, or else reason and message of the failure."""
    if report.evaluate is None:
        return None, report.reason or "Garbage", report.message or "the report holds neither a result nor a reason"
    scores = report.evaluate.scores
    if scores.keys() != {o.name for o in task.objectives}:
        return None, "Garbage", f"the report scores {sorted(scores)}"
    fitness = fitness_of(task.objectives, scores)
    if not isfinite(fitness):
        return None, "NotFinite", f"the fitness is {fitness}"
    return fitness, None, None
