"""The quickstart from beginning to end, its workers on the device."""

import json
import subprocess
import sys
from pathlib import Path

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"


def test_the_quickstart_finds_a_merge_that_beats_its_sources(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "evomerge_operator.cli", "run", QUICKSTART / "evomerge.yaml", "--out", "out"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=500)
    assert ended.returncode == 0, ended.stderr + (tmp_path / "out" / "worker.log").read_text()
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert not [c for c in run["candidates"] if c["outcome"] == "Failed"]
    rows = {row["name"]: row for row in run["conclusion"]["test"]}
    assert run["conclusion"]["beats_best_source"]
    assert rows["winner"]["score"] > rows["plain average"]["score"]
    assert (tmp_path / "out" / "best" / "model.safetensors").exists()
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()
