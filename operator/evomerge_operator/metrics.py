"""What the operator tells Prometheus. A search's series go when its resource goes."""

from importlib.metadata import version

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # as many series again, that nobody looks at
_SEARCH = ("namespace", "name", "stage")

CANDIDATES = Gauge("evomerge_search_candidates", "Finished candidates, by outcome.", (*_SEARCH, "outcome"))
FAILURES = Gauge("evomerge_search_failed_candidates", "Failed candidates, by reason.", (*_SEARCH, "reason"))
BUDGET = Gauge("evomerge_search_budget_candidates", "Candidates that the search may have in all.", _SEARCH)
RUNNING = Gauge("evomerge_search_running", "Worker pods at work or on their way.", _SEARCH)
BEST = Gauge("evomerge_search_best_fitness", "The best fitness so far, on search items.", _SEARCH)
BEST_SOURCE = Gauge("evomerge_search_best_source_fitness", "The best source's fitness, on search items.", _SEARCH)
DISRUPTIONS = Gauge("evomerge_search_disruptions", "Attempts whose pod was lost.", _SEARCH)
FAILURES_BUDGET = Gauge("evomerge_search_budget_failures", "Failed candidates that the search may have.", _SEARCH)
DISRUPTIONS_BUDGET = Gauge("evomerge_search_budget_disruptions", "Lost pods that the search may have.", _SEARCH)
PHASE = Gauge("evomerge_search_phase", "1 for the phase that the search is in.", (*_SEARCH, "phase"))
WORKER_SECONDS = Gauge("evomerge_search_worker_seconds", "Seconds that finished candidates have cost.", _SEARCH)
GPUS = Gauge("evomerge_search_gpus_per_worker", "GPUs that a worker pod holds.", _SEARCH)
SECONDS = Histogram(
    "evomerge_candidate_seconds",
    "Where a candidate's time goes: wait (for its pod), pull, load, merge, evaluate.",
    (*_SEARCH, "phase"),
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000),
)

BUILD_INFO = Gauge("evomerge_build_info", "1, with the version.", ("version",))
LEADER = Gauge("evomerge_leader", "1 while this process holds the Lease.")
HEARTBEAT = Gauge("evomerge_heartbeat_timestamp_seconds", "When the reconcile loop was last alive.")
LOOP_LAG = Histogram(
    "evomerge_loop_lag_seconds",
    "How late the event loop, which renews the Lease, wakes its timers.",
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
RECONCILE_SECONDS = Histogram("evomerge_reconcile_seconds", "One look at an EvoMerge and what follows from it.")
RECONCILE_ERRORS = Counter("evomerge_reconcile_errors", "Looks that ended in an error.")
API_REQUESTS = Counter("evomerge_api_requests", "Requests to the API server.", ("verb", "resource", "code"))

BUILD_INFO.labels(version("evomerge")).set(1)

_OF_A_SEARCH = (
    CANDIDATES,
    FAILURES,
    BUDGET,
    RUNNING,
    BEST,
    BEST_SOURCE,
    DISRUPTIONS,
    FAILURES_BUDGET,
    DISRUPTIONS_BUDGET,
    PHASE,
    WORKER_SECONDS,
    GPUS,
    SECONDS,
)


_OF_NOW = (RUNNING, DISRUPTIONS, FAILURES_BUDGET, DISRUPTIONS_BUDGET, PHASE, GPUS)


def leave(namespace: str, name: str, stage: str) -> None:
    """Remove the series of a stage that speak of the present: another stage has them now."""
    for metric in _OF_NOW:
        metric.remove_by_labels({"namespace": namespace, "name": name, "stage": stage})


def forget(namespace: str, name: str) -> None:
    """Remove every series of an EvoMerge that is gone."""
    for metric in _OF_A_SEARCH:
        metric.remove_by_labels({"namespace": namespace, "name": name})


def value(gauge: Gauge) -> float:
    """The value of a gauge without labels."""
    return float(next(iter(gauge.collect())).samples[0].value)
