"""Which stage of a run its report is about."""

from evomerge_contract.manifest import EvoMergeSpec, Stage
from evomerge_contract.report import RunReport


def stage_of(run: RunReport, spec: EvoMergeSpec) -> Stage:
    """The last stage that has candidates, or the first while there are none."""
    searched = {candidate.stage for candidate in run.candidates}
    begun = [stage for stage in spec.stages if stage.name in searched]
    return begun[-1] if begun else next(iter(spec.stages))
