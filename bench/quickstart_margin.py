"""Does evolving pay: over ten search seeds of the quickstart, the winner's gain on test items, and the time it takes.

Each seed is a whole `evomerge run` of the shipped manifest, nothing changed but the seed. About a minute each on two
cores; --seeds takes fewer.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import yaml
from figures import figure
from random_models import QUICKSTART

from evomerge_contract.report import ConcludeResult, Interval, ScoreRow
from evomerge_operator.manifest import load_manifest


class Outcome(NamedTuple):
    """How one seed ended. Margins are the winner's score minus the other's, on test items."""

    seed: int
    seconds: float
    winner: ScoreRow
    source: ScoreRow
    average: ScoreRow

    def describe(self) -> dict[str, object]:
        """For a person to read."""
        return {
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "winner": self.winner.score,
            "best source": f"{self.source.score:.3f} ({self.source.name}), {_gain(self.source)}",
            "plain average": f"{self.average.score:.3f}, {_gain(self.average)}",
            "winner's skills": {skill: round(score, 3) for skill, score in self.winner.skills.items()},
        }


def main() -> None:
    """Run each seed and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    outcomes = []
    for seed in range(options.seeds):
        outcomes.append(run(seed))
        print(json.dumps(outcomes[-1].describe(), ensure_ascii=False), flush=True)
    report(outcomes)


def report(outcomes: list[Outcome]) -> None:
    """The margins, how many are sure, and the wall time."""
    for name in ("source", "average"):
        rows: list[ScoreRow] = [getattr(outcome, name) for outcome in outcomes]
        reference = {"source": "the best source on test items", "average": "the plain average of the sources"}[name]
        figure(
            "quickstart_margin",
            f"quickstart.margin_over_{name}",
            [row.winner_minus or 0.0 for row in rows],
            "share of test items",
            reference=reference,
            goal=">= 0.08",
            winners=[outcome.winner.score for outcome in outcomes],
            scores=[row.score for row in rows],
            interval_lows=[round(_interval(row).low, 4) for row in rows],
        )
    sure = sum(_interval(o.source).low > 0 and _interval(o.average).low > 0 for o in outcomes)
    figure(
        "quickstart_margin",
        "quickstart.sure_seeds",
        sure / len(outcomes),
        "share of seeds",
        reference="seeds whose 95 % paired intervals, over both, lie above 0",
        goal=">= 0.9",
        seeds=len(outcomes),
        sure=sure,
    )
    figure(
        "quickstart_margin",
        "quickstart.seconds",
        [outcome.seconds for outcome in outcomes],
        "s",
        reference="an absolute bound for 2 cores, the one figure here that is no ratio",
        goal="<= 180",
        longest=round(max(outcome.seconds for outcome in outcomes), 1),
        median=round(statistics.median(outcome.seconds for outcome in outcomes), 1),
    )


def run(seed: int) -> Outcome:
    """One whole quickstart."""
    with tempfile.TemporaryDirectory(prefix="evomerge-bench-") as temporary:
        folder = Path(temporary)
        manifest = load_manifest(QUICKSTART / "evomerge.yaml").wire()
        manifest["spec"]["stages"][0]["search"]["seed"] = seed
        (folder / "evomerge.yaml").write_text(yaml.safe_dump(manifest), "utf-8")
        began = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, "-m", "evomerge_operator.cli", "run", folder / "evomerge.yaml", "--out", folder / "run"],
            env=os.environ | {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        seconds = time.perf_counter() - began
        if ended.returncode:
            raise SystemExit(ended.stdout)
        facts = json.loads((folder / "run" / "run.json").read_text("utf-8"))
    conclusion = ConcludeResult.model_validate(facts["conclusion"])
    rows = {row.role: row for row in conclusion.test if row.role in ("winner", "average")}
    source = next(row for row in conclusion.test if row.name == conclusion.best_source)
    return Outcome(seed, seconds, rows["winner"], source, rows["average"])


def _interval(row: ScoreRow) -> Interval:
    if row.winner_minus_interval is None:
        raise SystemExit(f"{row.name} has no interval")
    return row.winner_minus_interval


def _gain(row: ScoreRow) -> str:
    interval = _interval(row)
    return f"{row.winner_minus or 0.0:+.3f} [{interval.low:.3f}, {interval.high:.3f}]"


if __name__ == "__main__":
    main()
