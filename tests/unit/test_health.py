"""What the operator's process answers the kubelet, over HTTP, and how late its loop is."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

import aiohttp
import pytest

from evomerge_operator import controller, metrics
from evomerge_operator.controller import Controller
from evomerge_operator.health import ALIVE_SECONDS, Health, measure_lag, serve
from evomerge_operator.kube import lease as lease_module
from evomerge_operator.kube.client import Client
from evomerge_operator.kube.errors import ConflictError, GoneError, KubeError, RefusedError, UnavailableError
from evomerge_operator.kube.lease import Lease
from evomerge_operator.services.known import Known
from evomerge_operator.services.reconcile import Reconciler
from kube_documents import evomerge

Ask = Callable[[str], Awaitable[tuple[int, str]]]


class Answers(Client):
    """An API server that answers about the Lease as it is told: it is ours, another's, or there is an error."""

    def __init__(self, answer: str | KubeError) -> None:
        self.answer = answer

    async def request(self, verb: str, path: str, **_: object) -> dict[str, object]:
        if isinstance(self.answer, KubeError):
            raise self.answer
        return {"spec": {"holderIdentity": self.answer, "renewTime": str(time.monotonic())}}


def asked(health: Health, questions: Callable[[Ask], Awaitable[None]]) -> None:
    """Run `questions` against the process's own server."""

    async def run() -> None:
        runner = await serve(0, health)
        port = next(address[1] for address in runner.addresses if len(address) == 2)  # IPv6 has another, and four parts
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

            async def ask(path: str) -> tuple[int, str]:
                async with session.get(path) as answer:
                    return answer.status, await answer.text()

            try:
                await questions(ask)
            finally:
                await runner.cleanup()

    asyncio.run(asyncio.wait_for(run(), 30))


async def tried(answer: str | KubeError) -> Lease:
    """The Lease as "me" sees it, after it has asked once."""
    lease = Lease(Answers(answer), "ns", "evomerge", "me")
    await lease._tried()
    return lease


@pytest.fixture(autouse=True)
def standby() -> Iterator[None]:
    """The figures of a process that does not lead, before and after the test."""
    metrics.LEADER.set(0)
    yield
    metrics.LEADER.set(0)
    metrics.HEARTBEAT.set(0)


def test_a_leader_with_a_heartbeat_is_alive_and_one_without_is_not() -> None:
    async def questions(ask: Ask) -> None:
        metrics.LEADER.set(1)
        metrics.HEARTBEAT.set_to_current_time()
        assert await ask("/healthz") == (200, "ok\n")
        metrics.HEARTBEAT.set(time.time() - ALIVE_SECONDS - 1)
        assert await ask("/healthz") == (503, "the reconcile loop has not been alive for 61 s\n")

    asked(Health(), questions)


def test_a_standby_is_alive_without_a_heartbeat() -> None:
    async def questions(ask: Ask) -> None:
        assert await ask("/healthz") == (200, "ok\n")

    asked(Health(), questions)


def test_the_heartbeat_stops_when_a_look_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "STUCK_SECONDS", 0.2)
    monkeypatch.setattr(controller, "TICK_SECONDS", 0.02)

    class Stuck(Reconciler):
        def __init__(self) -> None:
            self.began = asyncio.Event()

        async def reconcile(self, known: Known, now: object) -> None:
            self.began.set()
            await asyncio.Event().wait()

    async def run() -> None:
        reconciler = Stuck()
        stuck = Controller(reconciler)
        beating = asyncio.create_task(stuck.beat())
        stuck.saw_evomerge(evomerge(), deleted=False)
        await reconciler.began.wait()
        await asyncio.sleep(0.4)
        last = metrics.value(metrics.HEARTBEAT)
        await asyncio.sleep(0.2)
        assert 0 < last == metrics.value(metrics.HEARTBEAT)
        beating.cancel()
        await stuck.stop()

    asyncio.run(run())


def test_before_the_kinds_are_served_it_is_not_ready() -> None:
    async def questions(ask: Ask) -> None:
        expected = "the API server does not answer, or does not serve the EvoMerge kinds yet\n"
        assert await ask("/readyz") == (503, expected)

    asked(Health(), questions)


@pytest.mark.parametrize("answer", ["other", ConflictError("too late"), GoneError("gone")], ids=str)
def test_a_standby_that_can_read_the_lease_is_ready(answer: str | KubeError) -> None:
    health = Health()

    async def questions(ask: Ask) -> None:
        health.lease = await tried(answer)
        assert await ask("/readyz") == (200, "ok\n")

    asked(health, questions)


@pytest.mark.parametrize("error", [RefusedError("no rights"), UnavailableError("away")], ids=str)
def test_a_standby_that_never_could_read_the_lease_is_not_ready(error: KubeError) -> None:
    health = Health()

    async def questions(ask: Ask) -> None:
        health.lease = await tried(error)
        assert await ask("/readyz") == (503, "the Lease could not be read or renewed for more than 15 s\n")

    asked(health, questions)


def test_a_standby_stays_ready_as_long_as_the_last_answer_is_recent(monkeypatch: pytest.MonkeyPatch) -> None:
    health = Health()

    async def questions(ask: Ask) -> None:
        health.lease = await tried("other")
        now = time.monotonic()
        for later, code in ((14, 200), (16, 503)):
            with monkeypatch.context() as patch:
                patch.setattr(lease_module.time, "monotonic", lambda later=later: now + later)
                wrong = health.not_ready()
            assert (503 if wrong else 200) == code

    asked(health, questions)


def test_a_leader_is_ready_once_its_watches_have_begun() -> None:
    health = Health()

    async def questions(ask: Ask) -> None:
        health.lease = await tried("me")
        metrics.LEADER.set(1)
        assert await ask("/readyz") == (503, "the watches have not begun yet\n")
        health.watching.set()
        assert await ask("/readyz") == (200, "ok\n")

    asked(health, questions)


def test_the_figures_are_served() -> None:
    async def questions(ask: Ask) -> None:
        code, text = await ask("/metrics")
        assert code == 200
        assert "\nevomerge_leader 0.0\n" in text

    asked(Health(), questions)


def test_a_loop_that_something_holds_up_is_seen_to_be_late() -> None:
    def observed() -> tuple[float, float]:
        """Observations of more than 0.25 s, and of all."""
        [metric] = metrics.LOOP_LAG.collect()
        counts = {s.labels.get("le"): s.value for s in metric.samples if s.name.endswith("_bucket")}
        return counts["+Inf"] - counts["0.25"], counts["+Inf"]

    async def run() -> None:
        measuring = asyncio.create_task(measure_lag())
        await asyncio.sleep(0.01)
        time.sleep(1)  # what must not happen
        await asyncio.sleep(0.01)
        measuring.cancel()

    late, of_all = observed()
    asyncio.run(run())
    assert observed() == (late + 1, of_all + 1)
