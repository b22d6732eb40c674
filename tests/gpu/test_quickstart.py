"""The quickstart from beginning to end, its workers on the device."""

import subprocess
import sys
from pathlib import Path

from evomerge_contract.report import RunReport

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"


def test_the_quickstart_finds_a_merge_that_beats_its_sources(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "evomerge_operator.cli", "run", QUICKSTART / "evomerge.yaml", "--out", "out"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=500)
    assert ended.returncode == 0, ended.stderr + (tmp_path / "out" / "worker.log").read_text()
    check(tmp_path / "out")


def check(out: Path) -> None:
    """A whole run lies there, whose winner is better than its sources and their plain average."""
    run = RunReport.model_validate_json((out / "run.json").read_bytes())
    assert {candidate.outcome for candidate in run.candidates} == {"Succeeded"}
    assert run.conclusion is not None
    assert run.conclusion.beats_best_source
    scores = {row.role: row.score for row in run.conclusion.test}
    assert scores["winner"] > scores["average"]
    assert (out / "best" / "model.safetensors").exists()
    assert "<svg" in (out / "report.html").read_text()
