"""Kopf's side: handlers that only translate events into news for the controller.

Events only: timers, daemons and change handlers would put a finalizer on every EvoMerge, and an uninstalled operator
would leave namespaces that cannot be deleted.
"""

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Any

import kopf

from evomerge_contract.resource import EVOMERGES, GROUP, VERSION
from evomerge_operator.controller import Controller
from evomerge_operator.kube.objects import MANAGED

_LEAVE_SECONDS = 3.0
_SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


def make_registry(controller: Controller) -> kopf.OperatorRegistry:
    """The handlers."""
    registry = kopf.OperatorRegistry()

    @kopf.on.startup(registry=registry)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.peering.standalone = True
        settings.persistence.diffbase_storage = _NoChanges()
        settings.watching.server_timeout = 300
        settings.watching.connect_timeout = 10
        selector = ",".join(f"{key}={value}" for key, value in MANAGED.items())
        settings.watching.label_selectors["batch", "v1", "jobs"] = selector
        settings.watching.label_selectors["", "v1", "pods"] = selector

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            return _in_cluster()
        return kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(GROUP, VERSION, EVOMERGES, registry=registry)
    async def evomerge(event: Any, **_: Any) -> None:
        controller.saw_evomerge(_plain(event["object"]), deleted=event["type"] == "DELETED")

    @kopf.on.event("batch", "v1", "jobs", registry=registry)
    async def job(event: Any, **_: Any) -> None:
        controller.saw_job(_plain(event["object"]), deleted=event["type"] == "DELETED")

    @kopf.on.event("", "v1", "pods", registry=registry)
    async def pod(event: Any, **_: Any) -> None:
        controller.saw_pod(_plain(event["object"]), deleted=event["type"] == "DELETED")

    return registry


async def watch(controller: Controller, namespaces: Sequence[str], begun: asyncio.Event) -> None:
    """Watch until told to stop by a signal, or until Kopf ends by an error of the API server's streams.

    `begun` is set once the watches begin.

    Kopf's own way to its end waits for every task, and one that connects anew just then never ends.
    """
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # a line per event otherwise
    tasks = await kopf.spawn_tasks(
        registry=make_registry(controller),
        standalone=True,
        ready_flag=begun,
        # Kopf's own asks for the user's name, and a container's user has none.
        identity="evomerge-operator",  # type: ignore[arg-type]
        clusterwide=not namespaces,
        namespaces=namespaces,
    )
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_LEAVE_SECONDS)


class _NoChanges(kopf.DiffBaseStorage):
    """Handlers of events need no changes told. What Kopf copies of every object to find them takes a third of the
    operator's time."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        return kopf.BodyEssence({})

    def fetch(self, *, body: kopf.Body) -> None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        return None


def _in_cluster() -> kopf.ConnectionInfo:
    """By address, not by name: the operator works in clusters without DNS for it, and starts faster."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    with open(f"{_SERVICE_ACCOUNT}/token", encoding="utf-8") as file:  # noqa: PTH123 - one line is all there is
        token = file.read().strip()
    address = f"[{host}]" if ":" in host else host
    return kopf.ConnectionInfo(server=f"https://{address}:{port}", ca_path=f"{_SERVICE_ACCOUNT}/ca.crt", token=token)


def _plain(document: Any) -> dict[str, Any]:
    return dict(document)
