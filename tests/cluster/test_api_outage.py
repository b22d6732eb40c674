"""The API server goes away, or answers as it should not: the operator begins anew at most once, and nothing is lost."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from api_proxy import ApiProxy, Fate, Lost, Refused, Request, Silent, Streamed, api_proxy, status_error
from audit_log import first_job_create, job_creates, unheld_writes
from image_references import Images
from kubernetes_cluster import Cluster
from operator_process import OperatorProcess
from releases import RELEASE, Release
from s3 import S3Server
from searches import Search, light_manifest, log_of

_AWAY_SECONDS = 120
_BACK_SECONDS = 60
_THROTTLED_SECONDS = 4
_RESYNC_SECONDS = 60
"""So often the operator asks for what its watches may have missed."""
_GIVES_UP_SECONDS = 54
"""So long Kopf asks again for a list that it is refused."""
_WATCHED = {"evomerges", "jobs", "pods"}
_WRITTEN = {
    ("POST", "mergecandidates"),
    ("PATCH", "mergecandidates/status"),
    ("PATCH", "evomerges/status"),
    ("POST", "jobs"),
    ("DELETE", "jobs"),
    ("POST", "configmaps"),
    ("DELETE", "configmaps"),
    ("POST", "events"),
}


def test_two_minutes_without_an_api_server_cost_at_most_one_restart(
    cluster: Cluster, images: Images, undisturbed: Search, s3: S3Server
) -> None:
    undisturbed.succeeds()
    slow = {"evaluate": "sleep:1"}
    search = Search.apply(
        cluster, light_manifest("outage", RELEASE, images.light_worker, s3, parallelism=1, faults=slow)
    )
    search.wait(lambda status: status.get("done", 0) >= 1)
    restarts = _restarts(cluster)

    cluster.stop_api()
    time.sleep(_AWAY_SECONDS)
    cluster.start_api()
    back = datetime.now(UTC)

    search.succeeds()
    assert _restarts(cluster) - restarts <= 1
    assert (first_job_create(search, after=back) - back).total_seconds() <= _BACK_SECONDS
    unheld, tried = unheld_writes(cluster, RELEASE)
    assert not unheld
    assert tried > 30
    assert log_of(s3, search) == log_of(s3, undisturbed)
    assert job_creates(search) == job_creates(undisturbed)


class Kept:
    """An operator behind a proxy that is started again whenever it ends, as a Deployment does it."""

    def __init__(self, operator: OperatorProcess, proxy: ApiProxy, search: Search) -> None:
        self._operator = operator
        self.proxy, self.search = proxy, search
        self.restarts = 0

    def look(self) -> None:
        """Start it again if it has ended, as it does when it wants to begin anew."""
        code = self._operator.exit_code()
        if code is not None:
            assert code == 1, self._operator.tail()
            self.restarts += 1
            self._operator.start()

    def until(self, condition: Callable[[], Any], seconds: float) -> None:
        """Keep it running until the condition holds; the test fails when it does not in time."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{self._operator.tail()}\n{self.search.describe()}"
            self.look()
            time.sleep(0.2)

    def gets_on(self) -> None:
        """Keep it running until one more Job has done its work; the test fails when that takes long."""
        done = self._done()
        self.until(lambda: self._done() > done, 150)

    def runs(self, of: str) -> bool:
        """Whether a pod of this candidate works."""
        pods = self.search.children("pods")
        return any(f"-{of}-" in pod["metadata"]["name"] and pod["status"]["phase"] == "Running" for pod in pods)

    def delete_job(self, of: str) -> None:
        """Delete a candidate's Job behind the operator's back."""
        (name,) = (j["metadata"]["name"] for j in self.search.children("jobs") if f"-{of}-" in j["metadata"]["name"])
        self.search.cluster.kubectl("delete", f"job/{name}", f"--namespace={self.search.namespace}")

    def _done(self) -> int:
        steps = self.search.status().get("steps", {}).values()
        finished = sum("outcome" in candidate.get("status", {}) for candidate in self.search.candidates().values())
        return finished + sum(step["succeeded"] for step in steps)


@pytest.fixture
def keep(
    release: Release,
    operator_process: Callable[..., OperatorProcess],
    light_search: Callable[..., Search],
    cluster: Cluster,
    namespace: str,
    tmp_path: Path,
) -> Iterator[Callable[..., Kept]]:
    """Makes an operator that reaches the API server only through a proxy, and a search, one candidate at a time."""
    own = cluster.kubeconfig_of("evomerge", namespace, tmp_path / "direct.kubeconfig")
    with api_proxy(own) as (proxy, url):
        kubeconfig = proxy.kubeconfig(tmp_path / "proxied.kubeconfig", url)

        def start(faults: Mapping[str, str]) -> Kept:
            search = light_search("proxied", parallelism=1, faults=faults)
            return Kept(operator_process("evomerge", namespace, KUBECONFIG=str(kubeconfig)), proxy, search)

        yield start


class Once:
    """A rule that strikes each of `places` once, and says which it has struck."""

    def __init__(self, places: set[Any], place: Callable[[Request], Any], fate: Fate) -> None:
        self._places, self._place, self._fate = places, place, fate
        self.struck: list[Any] = []

    def __call__(self, request: Request) -> Fate | None:
        place = self._place(request)
        if place not in self._places or place in self.struck:
            return None
        self.struck.append(place)
        return self._fate

    def over(self) -> bool:
        """Whether it has struck everywhere."""
        return set(self.struck) == self._places


class Busy:
    """A rule under which all but the Lease is refused for so long, from the first request on."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: float | None = None

    def __call__(self, request: Request) -> Fate | None:
        if request.resource == "leases" or self.over():
            return None
        self._until = self._until or time.monotonic() + self._seconds
        return Refused(429, {"Retry-After": "1"})

    def over(self) -> bool:
        """Whether requests were refused, and are not any more."""
        return self._until is not None and time.monotonic() > self._until


def watch_of(request: Request) -> str | None:
    """The kind that a request watches."""
    return request.resource if request.watches else None


WATCH_FAULTS: dict[str, Fate] = {
    "the request answered with 410": Refused(410),
    "410 in the stream": Streamed({"type": "ERROR", "object": status_error(410, "Expired")}),
    "another error in the stream": Streamed({"type": "ERROR", "object": status_error(500, "InternalError")}),
}


def test_lost_answers_ended_watches_and_throttling_change_nothing(
    keep: Callable[..., Kept], undisturbed: Search, s3: S3Server
) -> None:
    """All with one search: every write's first answer is lost, nothing but the Lease is served for a while, watches end
    in each way."""
    kept = keep(faults={})
    lost = Once(_WRITTEN, lambda request: (request.method, request.resource), Lost())
    kept.proxy.rule = lost
    kept.gets_on()
    busy = Busy(_THROTTLED_SECONDS)
    kept.proxy.rule = lambda request: busy(request) or lost(request)
    kept.gets_on()
    assert busy.over()
    assert kept.restarts == 0
    for name, fate in WATCH_FAULTS.items():
        restarts, ended = kept.restarts, Once(_WATCHED, watch_of, fate)
        kept.proxy.rule = lambda request, ended=ended: ended(request) or lost(request)
        kept.proxy.cut_watches()
        kept.until(ended.over, 30)
        kept.gets_on()
        assert kept.restarts - restarts <= 1, name

    kept.until(lambda: kept.search.status().get("phase") == "Succeeded", 120)
    assert lost.over(), lost.struck
    undisturbed.succeeds()
    assert log_of(s3, kept.search) == log_of(s3, undisturbed)
    assert job_creates(kept.search) == job_creates(undisturbed)


def test_refused_lists_cost_one_restart_and_what_vanished_unseen_is_noticed(
    keep: Callable[..., Kept], undisturbed: Search, s3: S3Server
) -> None:
    kept = keep(faults={"ps/3/1": "sleep:30"})
    kept.gets_on()
    refused = Refused(503)
    kept.proxy.rule = lambda request: refused if request.lists or request.watches else None
    kept.proxy.cut_watches()
    kept.until(lambda: kept.restarts, _GIVES_UP_SECONDS + 40)
    kept.proxy.rule = lambda _: None
    kept.gets_on()
    assert kept.restarts == 1

    kept.until(lambda: kept.runs("ps-00003"), 60)
    kept.proxy.rule = lambda request: Silent() if request.watches else None
    kept.proxy.cut_watches()
    kept.delete_job("ps-00003")
    kept.until(lambda: kept.search.candidates()["ps", 3].get("status", {}).get("disruptions"), _RESYNC_SECONDS + 10)
    kept.proxy.rule = lambda _: None
    kept.proxy.cut_watches()
    kept.until(lambda: kept.search.status().get("phase") == "Succeeded", 120)
    assert kept.restarts == 1
    undisturbed.succeeds()
    assert log_of(s3, kept.search) == log_of(s3, undisturbed)
    assert job_creates(kept.search) == job_creates(undisturbed) + Counter({"ps-00003-a2": 1})


def _restarts(cluster: Cluster) -> int:
    """How often the containers of the installed operators were started again."""
    pods = cluster.get("pods", f"--namespace={RELEASE}", "--selector=app.kubernetes.io/name=evomerge")["items"]
    assert len(pods) == 2
    return sum(status["restartCount"] for pod in pods for status in pod["status"]["containerStatuses"])
