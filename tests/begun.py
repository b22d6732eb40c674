"""A run whose first stage has just begun, for tests of what comes next."""

from documents import LAYOUT, prepared
from evomerge_contract.manifest import EvoMerge
from evomerge_contract.report import Layout
from evomerge_operator.plan.proposer import Proposer, begin_stage
from evomerge_operator.plan.run import Run, default_names, make_run


def begun(
    manifest: EvoMerge, layout: Layout = LAYOUT, report_dir: str = "file:///reports", *, pinned: bool = True
) -> tuple[Run, Proposer]:
    """The run and what proposes its candidates; without `pinned`, as it was begun before baselines were pinned."""
    found = prepared(manifest, layout)
    names = default_names(manifest, found) if pinned else None
    run = make_run(manifest, found, report_dir, names)
    return run, begin_stage(run, 0)
