"""Runs of the quickstart's trained models, for tests of `evomerge run`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart"
EVOMERGE = [sys.executable, "-m", "evomerge_operator.cli"]
CANDIDATES = 14


def manifest(folder: Path, **search: Any) -> Path:
    """The quickstart's manifest with fewer candidates and items, in `folder`."""
    doc = yaml.safe_load((QUICKSTART / "evomerge.yaml").read_text())
    spec = doc["spec"]
    for model in [*spec["models"], spec["base"]]:
        model["uri"] = str(QUICKSTART / model["uri"])
    jsonl = spec["evaluation"]["objectives"][0]["jsonl"]
    for split, file in jsonl.items():
        lines = (QUICKSTART / file).read_text().splitlines(keepends=True)
        (folder / f"{split}.jsonl").write_text("".join(lines[:100]))
        jsonl[split] = f"{split}.jsonl"
    spec["stages"][0]["search"] |= {"candidates": CANDIDATES, "lag": 4} | search
    path = folder / "evomerge.yaml"
    path.write_text(yaml.safe_dump(doc))
    return path


def evomerge(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [*EVOMERGE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["entry"] for line in (run / "log.jsonl").read_text().splitlines()]


def identical_part(run: Path) -> list[Any]:
    """The log without what may differ between two runs: times, hosts, attempts."""
    entries = log_of(run)
    for entry in entries[1:]:
        for varying in ("seconds", "host", "attempts"):
            entry["candidate"].pop(varying, None)
    return entries


def outcome(run: Path) -> dict[str, Any]:
    """Everything of a finished run that must not depend on how it came about."""
    conclusion = json.loads((run / "run.json").read_text())["conclusion"]
    files = {p.name: p.read_bytes() for p in (run / "best").iterdir()}
    return {"log": identical_part(run), "conclusion": conclusion, "files": files}
