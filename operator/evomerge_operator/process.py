"""`evomerge-operator`: the process. It waits for the API server, wins the Lease, and watches until that is over."""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import NoReturn

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from evomerge_contract.exits import EXIT_USAGE
from evomerge_operator import metrics
from evomerge_operator.controller import Controller
from evomerge_operator.handlers import watch
from evomerge_operator.kube.client import Client
from evomerge_operator.kube.errors import KubeError
from evomerge_operator.kube.gateway import Gateway
from evomerge_operator.kube.jobs import Defaults
from evomerge_operator.kube.lease import Lease
from evomerge_operator.kube.templates import template_of
from evomerge_operator.services.reconcile import Reconciler

_ALIVE_SECONDS = 60.0
_RETRY_SECONDS = 2.0
_LEAVE_SECONDS = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """The operator's settings, all from the environment."""

    namespaces: tuple[str, ...]
    """Those that are watched; none: all."""
    lease: str
    lease_namespace: str
    identity: str
    port: int
    defaults: Defaults

    @classmethod
    def read(cls) -> "Settings":
        """The settings in this process's environment.

        Raises:
            ValueError: one is wrong, in words.
        """
        environ = os.environ
        image = environ.get("EVOMERGE_WORKER_IMAGE", "")
        if not image:
            raise ValueError("EVOMERGE_WORKER_IMAGE must name the worker's image")
        return cls(
            namespaces=tuple(filter(None, environ.get("EVOMERGE_NAMESPACES", "").split(","))),
            lease=environ.get("EVOMERGE_LEASE", "evomerge-operator"),
            lease_namespace=environ.get("POD_NAMESPACE", "default"),
            identity=environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}",
            port=int(environ.get("EVOMERGE_PORT", "8080")),
            defaults=Defaults(image=image, template=template_of(environ.get("EVOMERGE_WORKER_TEMPLATE", ""))),
        )


def main() -> None:
    """The console command."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        settings = Settings.read()
    except ValueError as error:
        sys.stderr.write(f"evomerge-operator: {error}\n")
        sys.exit(EXIT_USAGE)
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> NoReturn:
    """Exit with 0 when a signal ended it, with 1 when the watch or the Lease was lost: the next start looks at
    everything anew."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    runner = await _serve(settings.port)
    work = asyncio.create_task(_lead(settings))
    stop = asyncio.create_task(stopped.wait())
    await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
    code = 0
    if not work.done():
        work.cancel()
        await asyncio.wait({work})
    elif error := work.exception():
        _log.error("an error of the operator's own", exc_info=error)
        code = 1
    elif not work.result():
        _log.error("the watch or the Lease is lost; ending, to begin anew")
        code = 1
    await runner.cleanup()
    os._exit(code)  # at once: what Kopf has left behind may wait forever


async def _lead(settings: Settings) -> bool:
    """Wait for the API server and the Lease, then work until the Lease or the watch is lost; whether a signal ended the
    watch, for Kopf takes over the signals' handlers."""
    # The Lease has a connection of its own: no burst of other requests keeps it from being renewed.
    client, lease_client = await Client.connect(), await Client.connect()
    lease = Lease(lease_client, settings.lease_namespace, settings.lease, settings.identity)
    gateway = Gateway(client, lease)
    try:
        await _until_served(gateway)
        _log.info("waiting for the Lease %s/%s", settings.lease_namespace, settings.lease)
        await lease.win()
        metrics.LEADER.set(1)
        _log.info("leading as %s", settings.identity)
        controller = Controller(Reconciler(gateway, settings.defaults))
        tasks = {
            asyncio.create_task(lease.keep(), name="Lease"),
            watching := asyncio.create_task(watch(controller, settings.namespaces), name="watch"),
            asyncio.create_task(controller.beat(), name="heartbeat"),
        }
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                if error := task.exception():
                    _log.error("the %s ended by an error", task.get_name(), exc_info=error)
            return watching in ended and watching.exception() is None
        finally:
            metrics.LEADER.set(0)
            for task in tasks:
                task.cancel()
            await controller.stop()
            await asyncio.wait(tasks, timeout=_LEAVE_SECONDS)
            await lease.release()
    finally:
        await client.close()
        await lease_client.close()


async def _until_served(gateway: Gateway) -> None:
    """Until the API server answers and knows our kinds: a chart brings them at the same time as this process."""
    while True:
        try:
            if await gateway.served():
                return
            _log.info("the EvoMerge kinds are not served yet")
        except KubeError as error:
            _log.warning("%s", error)
        metrics.HEARTBEAT.set_to_current_time()
        await asyncio.sleep(_RETRY_SECONDS)


async def _serve(port: int) -> web.AppRunner:
    """Metrics, and health that means something: a leader whose loops stand still is not alive."""
    app = web.Application()
    app.router.add_get("/metrics", _metrics)
    app.router.add_get("/healthz", _health)
    app.router.add_get("/readyz", _ready)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _health(_: web.Request) -> web.Response:
    leading = metrics.value(metrics.LEADER) == 1
    age = time.time() - metrics.value(metrics.HEARTBEAT)
    if leading and age > _ALIVE_SECONDS:
        return web.Response(status=503, text=f"the reconcile loop has not been alive for {age:.0f} s\n")
    return web.Response(text="ok\n")


async def _ready(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")
