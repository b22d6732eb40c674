"""Each alert of the chart over made-up series: when it fires, with which words, and when it does not."""

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from releases import CHART

RULES_FILE = CHART / "files/alerts.yaml"
RULES = {rule["alert"]: rule for group in yaml.safe_load(RULES_FILE.read_text())["groups"] for rule in group["rules"]}
Series = Mapping[str, str]
"""Values a minute, in promtool's notation: `0x10`, `5+1x60`."""


@dataclass(frozen=True)
class Firing:
    """An alert over series: `at` it fires, with these labels and this value in its words; `just_before` it does not."""

    alert: str
    series: Series
    at: str
    just_before: str | None
    labels: Mapping[str, str] = field(default_factory=dict)
    value: str = ""


def _phase(phase: str, values: str = "1x300") -> dict[str, str]:
    return {f'evomerge_search_phase{{namespace="n", name="s", stage="ps", phase="{phase}"}}': values}


def _candidates(succeeded: str, failed: str) -> dict[str, str]:
    series = 'evomerge_search_candidates{{namespace="n", name="s", stage="ps", outcome="{}"}}'
    return {series.format("Succeeded"): succeeded, series.format("Failed"): failed}


def _disruptions(lost: int, budget: int) -> dict[str, str]:
    labels = '{namespace="n", name="s", stage="ps"}'
    return {
        f"evomerge_search_disruptions{labels}": f"{lost}x10",
        f"evomerge_search_budget_disruptions{labels}": f"{budget}x10",
    }


def _operator(leader: str, heartbeat: str, instance: str = "a:8080") -> dict[str, str]:
    labels = f'{{instance="{instance}", namespace="e"}}'
    return {f"evomerge_leader{labels}": leader, f"evomerge_heartbeat_timestamp_seconds{labels}": heartbeat}


def _lags(counts: Mapping[str, str]) -> dict[str, str]:
    """How often the loop was late by so many seconds or less."""
    return {f'evomerge_loop_lag_seconds_bucket{{instance="a:8080", le="{le}"}}': count for le, count in counts.items()}


_SEARCH = {"namespace": "n", "name": "s"}
_ERRORS = 'evomerge_reconcile_errors_total{instance="a:8080"}'

FIRING = [
    Firing("EvoMergeOperatorDown", {}, "5m", "4m"),
    Firing("EvoMergeOperatorDown", {'evomerge_leader{instance="a:8080"}': "1x3 _x20"}, "14m", "12m"),
    Firing(
        "EvoMergeNoLeader",
        {f'evomerge_leader{{instance="{i}", namespace="e"}}': "0x10" for i in ("a:8080", "b:8080")},
        "2m",
        "1m",
        {"namespace": "e"},
    ),
    Firing(
        "EvoMergeHeartbeatStale",
        _operator("1x10", "0x10"),
        "4m",
        "3m",
        {"instance": "a:8080", "namespace": "e"},
        "4m 0s",
    ),
    Firing("EvoMergeReconcileErrors", {_ERRORS: "0+1x60"}, "40m", "20m", {"instance": "a:8080"}, "15"),
    Firing(
        "EvoMergeLoopLag",
        _lags({"0.01": "0+120x30", "2.5": "0+120x30", "5": "0+120x4 601+120x25", "+Inf": "0+120x4 601+120x25"}),
        "5m",
        "4m",
        {"instance": "a:8080"},
        "5s",
    ),
    Firing("EvoMergeSearchFailed", _phase("Searching", "1x3 0x10") | _phase("Failed", "0x3 1x10"), "4m", "3m", _SEARCH),
    Firing("EvoMergeSearchStandsStill", _phase("Searching") | _candidates("5x300", "0x300"), "120m", "119m", _SEARCH),
    Firing("EvoMergeSearchStandsStill", _phase("Waiting"), "120m", "119m", _SEARCH),
    Firing(
        "EvoMergeSearchStandsStill",
        _phase("Searching") | _candidates("0+1x60 60x240", "0x300"),
        "211m",
        "200m",
        _SEARCH,
    ),
    Firing("EvoMergeManyFailures", _candidates("10x10", "5x10"), "5m", "4m", {**_SEARCH, "stage": "ps"}, "33.33%"),
    Firing("EvoMergeDisruptionsNearBudget", _disruptions(81, 100), "1m", "0m", _SEARCH, "81"),
]

QUIET: dict[str, tuple[str, Series, str]] = {
    "an operator is there": ("EvoMergeOperatorDown", {"evomerge_leader": "0x20"}, "20m"),
    "one of two leads": (
        "EvoMergeNoLeader",
        {
            'evomerge_leader{instance="a:8080", namespace="e"}': "0x20",
            'evomerge_leader{instance="b:8080", namespace="e"}': "1x20",
        },
        "20m",
    ),
    "a leader whose heart beats, and a standby": (
        "EvoMergeHeartbeatStale",
        _operator("1x20", "0+60x20") | _operator("0x20", "0x20", "b:8080"),
        "20m",
    ),
    "a few errors": ("EvoMergeReconcileErrors", {_ERRORS: "0+1x5 5x60"}, "60m"),
    "a loop that is late by little, and was late by much long ago": (
        "EvoMergeLoopLag",
        _lags({"1": "0+100x60", "2.5": "0+120x60", "5": "1+120x60", "+Inf": "1+120x60"}),
        "30m",
    ),
    "a success": ("EvoMergeSearchFailed", _phase("Succeeded") | _phase("Failed", "0x300"), "60m"),
    "a candidate each half hour": (
        "EvoMergeSearchStandsStill",
        _phase("Searching") | _candidates("0x19 1x19 2x19 3x19 4x19 5x19 6x19 7x19 8x19 9x19", "0x200"),
        "199m",
    ),
    "suspended": ("EvoMergeSearchStandsStill", _phase("Suspended") | _candidates("5x300", "0x300"), "300m"),
    "all of few failed": ("EvoMergeManyFailures", _candidates("0x60", "4x60"), "60m"),
    "a quarter failed": ("EvoMergeManyFailures", _candidates("30x60", "10x60"), "60m"),
    "a search that has ended with failures": (
        "EvoMergeManyFailures",
        _candidates("10x60", "5x60") | _phase("Succeeded", "1x60"),
        "60m",
    ),
    "a search that has ended with lost pods": (
        "EvoMergeDisruptionsNearBudget",
        _disruptions(81, 100) | _phase("Failed", "1x60"),
        "10m",
    ),
    "four fifths of the budget": ("EvoMergeDisruptionsNearBudget", _disruptions(80, 100), "10m"),
    "no pod lost of a budget of none": ("EvoMergeDisruptionsNearBudget", _disruptions(0, 0), "10m"),
}


@pytest.mark.parametrize("case", FIRING, ids=lambda case: f"{case.alert} at {case.at}")
def test_an_alert_fires_in_time_with_words_about_what_and_where(case: Firing, tmp_path: Path) -> None:
    rule = RULES[case.alert]
    expected = {
        "exp_labels": {**rule["labels"], **case.labels},
        "exp_annotations": {name: _filled(text, case) for name, text in rule["annotations"].items()},
    }
    tests = [_ask(case.alert, case.at, [expected])]
    if case.just_before is not None:
        tests.append(_ask(case.alert, case.just_before, []))
    _hold(tmp_path, case.series, tests)


@pytest.mark.parametrize("name", QUIET)
def test_an_alert_does_not_fire_without_cause(name: str, tmp_path: Path) -> None:
    alert, series, at = QUIET[name]
    _hold(tmp_path, series, [_ask(alert, at, [])])


def test_every_alert_has_a_case_for_each_way_and_says_what_to_do() -> None:
    assert {case.alert for case in FIRING} == {alert for alert, _, _ in QUIET.values()} == set(RULES)
    assert {tuple(rule["annotations"]) for rule in RULES.values()} == {("summary", "description", "action")}


def _ask(alert: str, at: str, expected: list[dict[str, Any]]) -> dict[str, Any]:
    return {"alertname": alert, "eval_time": at, "exp_alerts": expected}


def _filled(text: str, case: Firing) -> str:
    """The annotation with the labels and the value that are expected."""
    for label, value in case.labels.items():
        text = text.replace(f"{{{{ $labels.{label} }}}}", value)
    text = re.sub(r"\{\{ \$value [^}]*\}\}", case.value, text)
    assert "{{" not in text
    return text


def _hold(folder: Path, series: Series, tests: list[dict[str, Any]]) -> None:
    """promtool finds that the tests hold."""
    made = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": tests,
    }
    file = folder / "test.yaml"
    file.write_text(json.dumps({"rule_files": [str(RULES_FILE)], "evaluation_interval": "1m", "tests": [made]}))
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
