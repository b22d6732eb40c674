"""Who may write: a Lease of a real HTTP server that keeps it as the API server does, by resourceVersion."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from evomerge_operator.kube import lease as module
from evomerge_operator.kube.client import Client
from evomerge_operator.kube.errors import NotLeaderError
from evomerge_operator.kube.gateway import Gateway
from evomerge_operator.kube.lease import Lease
from evomerge_operator.kube.objects import Parent

PATH = "/apis/coordination.k8s.io/v1/namespaces/ns/leases"


class Leases:
    """One Lease, served: created once, updated by its resourceVersion only."""

    def __init__(self) -> None:
        self.stored: dict[str, Any] | None = None
        self.version = 0
        self.away = False
        self.others: list[str] = []
        """Every other request."""

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if not request.path.startswith(PATH):
            self.others.append(f"{request.method} {request.path}")
            return web.json_response({}, status=201)
        if self.away:
            return _error(503)
        if request.method == "GET":
            return _error(404) if self.stored is None else web.json_response(self.stored)
        wanted = await request.json()
        there = self.stored["metadata"]["resourceVersion"] if self.stored else None
        if wanted["metadata"].get("resourceVersion") != there:
            return _error(409)
        self.version += 1
        self.stored = wanted | {"metadata": wanted["metadata"] | {"resourceVersion": str(self.version)}}
        return web.json_response(self.stored, status=201)

    @property
    def holder(self) -> str | None:
        return self.stored and self.stored["spec"]["holderIdentity"]


@asynccontextmanager
async def served(leases: Leases) -> AsyncIterator[Callable[[str], Lease]]:
    """Makes Leases as processes of different names see it."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", leases.serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await (site := web.TCPSite(runner, "127.0.0.1", 0)).start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    client = Client(ApiClient(Configuration(host=f"http://127.0.0.1:{port}")))
    try:
        yield lambda name: Lease(client, "ns", "evomerge", name)
    finally:
        await client.close()
        await runner.cleanup()


def run(test: Callable[[Leases, Callable[[str], Lease]], Awaitable[None]]) -> None:
    async def with_server() -> None:
        leases = Leases()
        async with served(leases) as make:
            await test(leases, make)

    asyncio.run(asyncio.wait_for(with_server(), 30))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the time."""
    for name, seconds in {
        "DURATION_SECONDS": 1.5,
        "DEADLINE_SECONDS": 1.0,
        "RETRY_SECONDS": 0.1,
        "_WRITE_SECONDS": 0.1,
    }.items():
        monkeypatch.setattr(module, name, seconds)


def test_the_first_to_come_holds_it_and_another_only_once_it_is_given_back() -> None:
    async def test(leases: Leases, make: Callable[[str], Lease]) -> None:
        first, second = make("first"), make("second")
        assert first.seconds_left() <= 0
        await first.win()
        waiting = asyncio.create_task(second.win())
        keeping = asyncio.create_task(first.keep())
        while leases.version < 20:  # longer than its duration: renewals keep the other out
            await asyncio.sleep(0.02)
        assert (leases.holder, first.seconds_left() > 0, second.seconds_left() > 0) == ("first", True, False)
        keeping.cancel()
        await first.release()
        assert first.seconds_left() <= 0
        await waiting
        assert (leases.holder, second.seconds_left() > 0) == ("second", True)
        assert leases.stored is not None
        assert leases.stored["spec"]["leaseTransitions"] == 1

    run(test)


def test_it_ends_by_our_clock_when_the_server_is_away_and_before_another_may_take_it() -> None:
    async def test(leases: Leases, make: Callable[[str], Lease]) -> None:
        first, second = make("first"), make("second")
        await first.win()
        keeping = asyncio.create_task(first.keep())
        waiting = asyncio.create_task(second.win())
        leases.away = True
        await keeping  # it is told that it is lost, though nobody answers
        assert first.seconds_left() <= 0
        leases.away = False
        assert leases.holder == "first"  # in the store still
        await waiting
        assert leases.holder == "second"
        await first.release()  # a late one takes nothing away
        assert (leases.holder, second.seconds_left() > 0) == ("second", True)

    run(test)


def test_the_same_process_takes_it_up_again_after_a_restart_at_once() -> None:
    async def test(leases: Leases, make: Callable[[str], Lease]) -> None:
        await make("pod").win()
        again = make("pod")
        assert again.seconds_left() <= 0
        await asyncio.wait_for(again.win(), 1.0)
        assert again.seconds_left() > 0
        assert leases.stored is not None
        assert leases.stored["spec"]["leaseTransitions"] == 0

    run(test)


def test_of_two_that_find_it_free_one_wins() -> None:
    async def test(leases: Leases, make: Callable[[str], Lease]) -> None:
        racers = [make(f"racer-{number}") for number in range(5)]
        done, pending = await asyncio.wait(
            [asyncio.create_task(racer.win()) for racer in racers], return_when=asyncio.FIRST_COMPLETED
        )
        assert [racer.seconds_left() > 0 for racer in racers].count(True) == len(done) == 1
        for task in pending:
            task.cancel()

    run(test)


def test_no_write_leaves_the_process_once_the_lease_is_lost() -> None:
    async def test(leases: Leases, make: Callable[[str], Lease]) -> None:
        lease = make("first")
        gateway = Gateway(lease._client, lease)
        job = {"metadata": {"name": "job"}}
        with pytest.raises(NotLeaderError):
            await gateway.create_job(job, Parent("ns", "tiny", "uid"))
        await lease.win()
        await gateway.create_job(job, Parent("ns", "tiny", "uid"))
        while lease.seconds_left() > 0:
            await asyncio.sleep(0.02)
        with pytest.raises(NotLeaderError):
            await gateway.delete_job("ns", "job", "uid")
        assert leases.others == ["POST /apis/batch/v1/namespaces/ns/jobs"]

    run(test)


def _error(code: int) -> web.Response:
    return web.Response(status=code, text=json.dumps({"message": f"{code}"}))
