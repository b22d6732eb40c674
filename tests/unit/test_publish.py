"""What is told to Prometheus of an EvoMerge of which no more is known than the resource itself."""

from dataclasses import replace

import pytest
from prometheus_client import REGISTRY

from documents import document, stage
from evomerge_operator import metrics
from evomerge_operator.services.known import Known
from evomerge_operator.services.publish import publish
from kube_documents import evomerge, known_of


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_of_a_search_that_ended_before_this_operator_began_the_phase_is_told_until_it_is_deleted(phase: str) -> None:
    manifest = document()
    metadata = {"namespace": "team", "name": "old", "uid": "1", "resourceVersion": "1", "generation": 1}
    publish(Known.of({**manifest, "metadata": metadata, "status": {"phase": phase, "observedGeneration": 1}}))
    assert _series() == {("evomerge_search_phase", phase)}
    metrics.forget("team", "old")
    assert _series() == set()


def test_a_stage_that_is_over_keeps_what_it_came_to_and_no_series_of_the_present() -> None:
    second = stage(candidates=5) | {"name": "more"}
    known = known_of(evomerge(stages=[stage(candidates=3), second]), searching=True)
    assert known.live is not None
    publish(known)
    first = known.live.run.stage
    known.live.begin(replace(first, stage=first.stage.model_copy(update={"name": "more"})), b"")
    publish(known)
    told = {
        (s.name, s.labels["stage"]) for m in REGISTRY.collect() for s in m.samples if s.labels.get("name") == "tiny"
    }
    assert {("evomerge_search_budget_candidates", name) for name in ("ps", "more")} <= told
    assert {name for name, of in told if of == "ps"}.isdisjoint({"evomerge_search_phase", "evomerge_search_running"})
    assert ("evomerge_search_running", "more") in told
    metrics.forget("ns", "tiny")


def _series() -> set[tuple[str, str | None]]:
    """Name and phase of what is not 0."""
    samples = [sample for metric in REGISTRY.collect() for sample in metric.samples]
    return {(s.name, s.labels.get("phase")) for s in samples if s.labels.get("name") == "old" and s.value}
