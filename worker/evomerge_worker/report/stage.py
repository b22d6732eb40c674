"""Which stage of a run its report is about."""

from evomerge_contract.manifest import EvoMergeSpec, Stage
from evomerge_contract.report import RunReport


def stage_of(run: RunReport, spec: EvoMergeSpec) -> Stage:
    """The winner's stage, or the last one that has candidates, or the first while there are none."""
    if run.conclusion is not None and run.conclusion.stage is not None:
        return next(stage for stage in spec.stages if stage.name == run.conclusion.stage)
    searched = {candidate.stage for candidate in run.candidates}
    begun = [stage for stage in spec.stages if stage.name in searched]
    return begun[-1] if begun else next(iter(spec.stages))


def of_stage(run: RunReport, spec: EvoMergeSpec) -> RunReport:
    """The report with the candidates of that stage alone."""
    name = stage_of(run, spec).name
    return run.model_copy(update={"candidates": [c for c in run.candidates if c.stage == name]})
