"""The table of metrics and the evaluators: nothing is missing from them, and nobody else knows a metric by name."""

import re
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest

from documents import document
from evomerge_contract.base import canonical_json
from evomerge_contract.manifest import SPLITS, Evaluator, EvoMergeSpec, Jsonl, Objective, without_uris
from evomerge_contract.methods import any_of
from evomerge_contract.metrics import EVALUATORS, METRICS, MetricName, metrics_of
from evomerge_contract.report import ItemScore, fitness_of
from evomerge_operator.manifest import parse_manifest
from evomerge_operator.rules import broken_rules
from evomerge_worker.evaluate.evaluators import jsonl
from evomerge_worker.evaluate.metrics import aggregate
from evomerge_worker.report.score_table import counted_negatively

ROOT = Path(__file__).parents[2]
NAMED_IN = {
    "operator/evomerge_contract/metrics.py",
    "worker/evomerge_worker/evaluate/evaluators/jsonl.py",
    "worker/evomerge_worker/evaluate/choices.py",  # which of its two metrics is asked for
}


def objective(metric: MetricName = "exact_match", **fields: Any) -> Objective:
    return Objective(
        name=metric.replace("_", "-"), jsonl=Jsonl(search="a", select="b", test="c"), metric=metric, **fields
    )


def spec_with(changed: Objective) -> EvoMergeSpec:
    spec = parse_manifest(document(), source="m.yaml", folder=None).spec
    return spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"objectives": [changed]})})


def code() -> Iterator[Path]:
    for side in ("operator", "worker"):
        yield from (ROOT / side).rglob("*.py")


def test_every_metric_has_a_row_and_an_evaluator() -> None:
    assert set(METRICS) == set(get_args(MetricName))
    assert all(metric.evaluators and set(metric.evaluators) <= set(EVALUATORS) for metric in METRICS.values())


def test_every_evaluator_is_a_field_of_an_objective_and_a_file_of_the_worker() -> None:
    fields = {
        name
        for name, field in Objective.model_fields.items()
        if any(
            isinstance(kind, type) and issubclass(kind, Evaluator)
            for kind in (field.annotation, *get_args(field.annotation))
        )
    }
    assert fields == set(EVALUATORS)
    for name in EVALUATORS:
        module = import_module(f"evomerge_worker.evaluate.evaluators.{name}")
        assert callable(module.read)
        assert callable(module.prepare)


def test_jsonl_has_items_for_each_of_its_metrics() -> None:
    assert set(jsonl._KINDS) == set(metrics_of("jsonl"))


def test_no_code_but_the_table_and_the_evaluator_knows_a_metric_by_name() -> None:
    quoted = re.compile("|".join(f"[\"']{name}[\"']" for name in METRICS))
    found = {str(path.relative_to(ROOT)) for path in code() if quoted.search(path.read_text(encoding="utf-8"))}
    assert found == NAMED_IN


def test_the_aggregate_and_the_direction_of_a_metric_are_those_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [ItemScore(value=1.0, count=2.0), ItemScore(value=0.0, count=2.0)]
    assert aggregate("acc", scores) == 0.25
    assert fitness_of([objective("acc")], {"acc": 0.25}) == 0.25
    monkeypatch.setitem(METRICS, "acc", replace(METRICS["acc"], aggregate="exp", lower_is_better=True))
    assert aggregate("acc", scores) == pytest.approx(1.2840254)
    assert fitness_of([objective("acc")], {"acc": 0.25}) == -0.25


def test_the_report_says_which_metrics_count_negatively(monkeypatch: pytest.MonkeyPatch) -> None:
    objectives = [objective("perplexity"), objective("acc")]
    assert counted_negatively(objectives[1:]) == ""
    assert counted_negatively(objectives) == "Perplexity counts negatively in the total"
    monkeypatch.setitem(METRICS, "acc", replace(METRICS["acc"], lower_is_better=True))
    assert counted_negatively(objectives) == "Acc and perplexity count negatively in the total"


def test_an_objective_names_exactly_one_evaluator() -> None:
    (problem,) = broken_rules(spec_with(objective().model_copy(update={"jsonl": None})))
    assert problem.path == "spec.evaluation.objectives[0]"
    assert problem.message == f"names 0 evaluators; exactly one is allowed: {', '.join(EVALUATORS)}"


def test_a_metric_of_another_evaluator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "acc", replace(METRICS["acc"], evaluators=()))
    (problem,) = broken_rules(spec_with(objective("acc")))
    assert problem.path == "spec.evaluation.objectives[0].metric"
    assert problem.message == f"acc is no metric of jsonl; choose {any_of(metrics_of('jsonl'))}"
    assert "acc" not in metrics_of("jsonl")


def test_a_figure_per_token_is_refused_with_those_that_are_none() -> None:
    spec = spec_with(objective("perplexity")).model_copy(update={"tokenizer_source": "union"})
    (problem,) = broken_rules(spec)
    assert problem.message.endswith(f"choose {any_of(metrics_of('jsonl', per_token=False))}")
    assert "perplexity" not in metrics_of("jsonl", per_token=False)


def test_names_to_choose_from_are_joined_by_or() -> None:
    assert [any_of(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a or b", "a, b or c"]


def test_items_at_other_places_make_the_same_digest_and_an_evaluators_settings_another() -> None:
    here = objective()
    there = here.with_uris({split: f"s3://bucket/{split}" for split in SPLITS})
    assert there.evaluator.uris == {split: f"s3://bucket/{split}" for split in SPLITS}
    assert canonical_json(without_uris(there.wire())) == canonical_json(without_uris(here.wire()))
    assert "jsonl" not in without_uris(here.wire())
    wire = here.wire()
    wire["jsonl"]["shots"] = 3
    assert without_uris(wire)["jsonl"] == {"shots": 3}
