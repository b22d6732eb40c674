"""Figures: one JSON line each, printed and kept in bench/results/<bench>.jsonl (the latest of each name)."""

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def figure(
    bench: str, name: str, samples: float | Sequence[float], unit: str, *, reference: str, goal: str, **also: Any
) -> None:
    """Print and keep a figure: the median of `samples`.

    `reference` says what it is measured against, `goal` the bound to meet ("<= 1.2", ">= 8", "" for none); `also`
    holds what helps to judge it. The machine's load (1 minute, before this line) and its cores are added.
    """
    values = [float(v) for v in samples] if isinstance(samples, Sequence) else [float(samples)]
    value = statistics.median(values)
    line: dict[str, Any] = {"name": name, "value": _short(value), "unit": unit, "reference": reference, "goal": goal}
    if goal:
        line["met"] = meets(value, goal)
    if len(values) > 1:
        line["samples"] = [_short(v) for v in values]
    line |= also | {"load": round(os.getloadavg()[0], 1), "cores": len(os.sched_getaffinity(0))}
    print(json.dumps(line, ensure_ascii=False), flush=True)
    _keep(RESULTS / f"{bench}.jsonl", line)


def meets(value: float, goal: str) -> bool:
    """Whether `value` is within a goal such as "<= 1.2"."""
    relation, bound = goal.split()
    return value <= float(bound) if relation == "<=" else value >= float(bound)


def _keep(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = [json.loads(text) for text in path.read_text("utf-8").splitlines()] if path.exists() else []
    kept = {old["name"]: old for old in lines} | {line["name"]: line}
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in kept.values()), "utf-8")


def _short(value: float) -> float:
    return float(f"{value:.4g}")
