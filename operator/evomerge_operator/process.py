"""`evomerge-operator`: the process. It waits for the API server, wins the Lease, and watches until that is over."""

import asyncio
import logging
import os
import re
import signal
import socket
import sys
from dataclasses import dataclass
from typing import NoReturn

from evomerge_contract.exits import EXIT_USAGE
from evomerge_operator import metrics
from evomerge_operator.controller import Controller
from evomerge_operator.handlers import watch
from evomerge_operator.health import Health, measure_lag, serve
from evomerge_operator.kube.client import Client
from evomerge_operator.kube.errors import KubeError
from evomerge_operator.kube.gateway import Gateway
from evomerge_operator.kube.jobs import Defaults
from evomerge_operator.kube.lease import Lease
from evomerge_operator.kube.templates import template_of
from evomerge_operator.planning.pool import Pool
from evomerge_operator.services.reconcile import Reconciler

_RETRY_SECONDS = 2.0
_LEAVE_SECONDS = 5.0
_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
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
            namespaces=_names("EVOMERGE_NAMESPACES", environ.get("EVOMERGE_NAMESPACES", "")),
            lease=_name("EVOMERGE_LEASE", environ.get("EVOMERGE_LEASE", "evomerge-operator")),
            lease_namespace=_name("POD_NAMESPACE", environ.get("POD_NAMESPACE", "default")),
            identity=environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}",
            port=_port(environ.get("EVOMERGE_PORT", "8080")),
            defaults=Defaults(image=image, template=template_of(environ.get("EVOMERGE_WORKER_TEMPLATE", ""))),
        )


def _names(variable: str, text: str) -> tuple[str, ...]:
    return tuple(_name(variable, part.strip()) for part in text.split(",") if part.strip())


def _name(variable: str, text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(f"{variable} holds {text!r}; a name is lower-case letters, digits, hyphens and dots")
    return text


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ValueError(f"EVOMERGE_PORT is {text!r}; it must be a number from 1 to 65535")
    return int(text)


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
    health = Health()
    runner = await serve(settings.port, health)
    work = asyncio.create_task(_lead(settings, health))
    lag = asyncio.create_task(measure_lag())
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
    lag.cancel()
    await runner.cleanup()
    os._exit(code)  # at once: what Kopf has left behind may wait forever


async def _lead(settings: Settings, health: Health) -> bool:
    """Wait for the API server and the Lease, then work until the Lease or the watch is lost; whether a signal ended the
    watch, for Kopf takes over the signals' handlers."""
    # The Lease has a connection of its own: no burst of other requests keeps it from being renewed.
    client, lease_client = await Client.connect(), await Client.connect()
    lease = Lease(lease_client, settings.lease_namespace, settings.lease, settings.identity)
    gateway = Gateway(client, lease)
    try:
        await _until_served(gateway)
        _log.info("waiting for the Lease %s/%s", settings.lease_namespace, settings.lease)
        health.lease = lease
        await lease.win()
        metrics.LEADER.set(1)
        _log.info("leading as %s", settings.identity)
        controller = Controller(Reconciler(gateway, settings.defaults, Pool()))
        tasks = {
            asyncio.create_task(lease.keep(), name="Lease"),
            watching := asyncio.create_task(watch(controller, settings.namespaces, health.watching), name="watch"),
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
