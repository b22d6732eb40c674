"""A worker's metrics, served to Prometheus while it works."""

import sys
from collections.abc import Iterable
from importlib.metadata import version
from socket import has_dualstack_ipv6
from typing import get_args

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from evomerge_contract.candidate import PHASES, OutcomeName
from evomerge_worker.process.tally import Tally


def serve_metrics(tally: Tally, port: str) -> None:
    """Serve `tally` at `port`, for as long as the process lives, in a thread of its own.

    Where the port cannot be had, standard error says so and there are no metrics.
    """
    registry = CollectorRegistry()
    registry.register(_Figures(tally))
    try:
        start_http_server(int(port), "::" if has_dualstack_ipv6() else "0.0.0.0", registry)  # noqa: S104
    except (OSError, OverflowError, ValueError) as error:
        sys.stderr.write(f"evomerge-worker: no metrics at port {port}: {error}\n")


class _Figures(Collector):
    """A tally, as Prometheus reads it."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def collect(self) -> Iterable[Metric]:
        tally, seconds = self._tally, self._tally.seconds
        yield GaugeMetricFamily("evomerge_worker_tasks", "Tasks that this worker was given.", tally.tasks)
        done = CounterMetricFamily(
            "evomerge_worker_tasks_done", "Tasks that this worker has reported.", labels=["outcome"]
        )
        for outcome in get_args(OutcomeName):
            done.add_metric([outcome], tally.outcomes[outcome])
        yield done
        yield CounterMetricFamily("evomerge_worker_items_done", "Items that this worker has scored.", tally.items)
        spent = CounterMetricFamily(
            "evomerge_worker_phase_seconds",
            "Seconds that this worker has spent in a phase, the running one included.",
            labels=["phase"],
        )
        # Every series is there from the beginning, at 0.
        for phase, value in (dict.fromkeys(PHASES, 0.0) | dict(seconds)).items():
            spent.add_metric([phase], value)
        yield spent
        build = GaugeMetricFamily("evomerge_build_info", "1, with the version.", labels=["version"])
        build.add_metric([version("evomerge")], 1)
        yield build
