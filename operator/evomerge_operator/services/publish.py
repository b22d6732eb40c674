"""What is known of an EvoMerge, as metrics."""

from collections import Counter
from typing import get_args

from evomerge_contract.candidate import FailureReason, OutcomeName
from evomerge_contract.status import Phase
from evomerge_operator import metrics
from evomerge_operator.kube.jobs import gpus
from evomerge_operator.services.known import Known


def publish(known: Known) -> None:
    """Set every series of an EvoMerge to what is known now; of one that cannot be read, or ended before we began, the
    phase alone."""
    parent, manifest, live = known.parent, known.manifest, known.live
    labels = (parent.namespace, parent.name, known.stage)
    for phase in get_args(Phase):
        metrics.PHASE.labels(*labels, phase).set(phase == known.status.phase)
    if manifest is None:
        return
    spec = manifest.spec
    stage = next(stage for stage in spec.stages if stage.name == known.stage)
    metrics.BUDGET.labels(*labels).set(stage.search.candidates)
    metrics.RUNNING.labels(*labels).set(len(known.jobs))
    metrics.DISRUPTIONS.labels(*labels).set(known.disruptions)
    metrics.DISRUPTIONS_BUDGET.labels(*labels).set(spec.budget.disruptions)
    metrics.FAILURES_BUDGET.labels(*labels).set(spec.budget.failures)
    metrics.GPUS.labels(*labels).set(gpus(spec.worker_of(stage)))
    if live is None:
        return
    for over in live.run.stages[:-1]:
        metrics.leave(parent.namespace, parent.name, over.name)
    of_stage = list(live.run.stage.progress.finished.values())
    outcomes = Counter(c.outcome for c in of_stage)
    for outcome in get_args(OutcomeName):
        metrics.CANDIDATES.labels(*labels, outcome).set(outcomes[outcome])
    reasons = Counter(c.reason for c in of_stage)
    for reason in get_args(FailureReason):
        metrics.FAILURES.labels(*labels, reason).set(reasons[reason])
    beside = live.run.compared.finished.values() if len(live.run.stages) == 1 else ()  # the baselines
    seconds = sum(c.seconds.get("total", 0.0) for c in (*of_stage, *beside))
    metrics.WORKER_SECONDS.labels(*labels).set(seconds)
    best, source = live.run.stage.progress.best(), live.run.best_source()
    if best is not None:
        metrics.BEST.labels(*labels).set(best)
    if source is not None:
        metrics.BEST_SOURCE.labels(*labels).set(source)
