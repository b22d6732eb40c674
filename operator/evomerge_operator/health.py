"""What the kubelet and Prometheus ask of the operator's process: is it alive, is it ready, what are its figures."""

import asyncio
import time

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from evomerge_operator import metrics
from evomerge_operator.kube.lease import DURATION_SECONDS, Lease

ALIVE_SECONDS = 60.0
"""A leader whose heartbeat is older is not alive."""
LAG_EVERY_SECONDS = 0.5


class Health:
    """What is known of this process's own state."""

    def __init__(self) -> None:
        self.lease: Lease | None = None
        """Set once the API server has answered and serves our kinds."""
        self.watching = asyncio.Event()
        """Set once the watches of a leader have begun."""

    def not_alive(self) -> str | None:
        """Why this process should be restarted, in words; None: it is alive."""
        age = time.time() - metrics.value(metrics.HEARTBEAT)
        if _leading() and age > ALIVE_SECONDS:
            return f"the reconcile loop has not been alive for {age:.0f} s"
        return None

    def not_ready(self) -> str | None:
        """Why this process neither leads nor could take over, in words; None: it is ready."""
        if self.lease is None:
            return "the API server does not answer, or does not serve the EvoMerge kinds yet"
        if self.lease.seconds_unanswered() > DURATION_SECONDS:
            return f"the Lease could not be read or renewed for more than {DURATION_SECONDS} s"
        if _leading() and not self.watching.is_set():
            return "the watches have not begun yet"
        return None


async def serve(port: int, health: Health) -> web.AppRunner:
    """Answer /metrics, /healthz and /readyz on every address until the runner is cleaned up. Port 0 takes a free one.

    Raises:
        OSError: the port cannot be listened on.
    """

    async def figures(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def alive(_: web.Request) -> web.Response:
        return _answer(health.not_alive())

    async def ready(_: web.Request) -> web.Response:
        return _answer(health.not_ready())

    app = web.Application()
    app.router.add_get("/metrics", figures)
    app.router.add_get("/healthz", alive)
    app.router.add_get("/readyz", ready)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner


async def measure_lag() -> None:
    """Observe how late the event loop wakes a timer, until cancelled: so long the Lease could not have been renewed."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_EVERY_SECONDS
        await asyncio.sleep(LAG_EVERY_SECONDS)
        metrics.LOOP_LAG.observe(max(0.0, loop.time() - due))


def _leading() -> bool:
    return metrics.value(metrics.LEADER) == 1


def _answer(wrong: str | None) -> web.Response:
    return web.Response(text="ok\n") if wrong is None else web.Response(status=503, text=f"{wrong}\n")
