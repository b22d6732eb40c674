"""What is told to Prometheus of an EvoMerge of which no more is known than the resource itself."""

import pytest
from prometheus_client import REGISTRY

from documents import document
from evomerge_operator import metrics
from evomerge_operator.services.known import Known
from evomerge_operator.services.publish import publish


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_of_a_search_that_ended_before_this_operator_began_the_phase_is_told_until_it_is_deleted(phase: str) -> None:
    manifest = document()
    metadata = {"namespace": "team", "name": "old", "uid": "1", "resourceVersion": "1", "generation": 1}
    publish(Known.of({**manifest, "metadata": metadata, "status": {"phase": phase, "observedGeneration": 1}}))
    assert _series() == {("evomerge_search_phase", phase)}
    metrics.forget("team", "old")
    assert _series() == set()


def _series() -> set[tuple[str, str | None]]:
    """Name and phase of what is not 0."""
    samples = [sample for metric in REGISTRY.collect() for sample in metric.samples]
    return {(s.name, s.labels.get("phase")) for s in samples if s.labels.get("name") == "old" and s.value}
