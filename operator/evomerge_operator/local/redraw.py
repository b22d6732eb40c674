"""`evomerge report`: draw a run's report again, from what lies in its directory."""

import json
from pathlib import Path

from pydantic import ValidationError

from evomerge_contract.report import RunReport
from evomerge_operator.errors import RunError
from evomerge_operator.local.directory import RunDirectory
from evomerge_operator.local.log import read_log
from evomerge_operator.local.worker_command import render_report
from evomerge_operator.plan.run import BASELINES


def redraw(path: Path) -> Path:
    """Write report.html from run.json and, for a run that is not finished, what the log has since.

    Raises:
        RunError: the directory holds no run.
    """
    directory = RunDirectory(path)
    candidates = read_log(directory.log)
    try:
        facts = RunReport.model_validate(json.loads(directory.facts.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise RunError(f"{directory.facts}: cannot be read; run `evomerge run` again to write it ({error})") from error
    if facts.conclusion is None:
        facts = facts.model_copy(
            update={
                "baselines": [c for c in candidates if c.stage == BASELINES],
                "candidates": [c for c in candidates if c.stage != BASELINES],
            }
        )
    render_report(facts, directory.report)
    return directory.report
