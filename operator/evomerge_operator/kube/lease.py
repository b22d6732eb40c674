"""Leader election by a Lease: one process at a time writes.

The client library's own election waits for answers without limit and trusts the wall clock. Here the right to write
ends by this process's monotonic clock, counted from before the last renewal was asked for, whatever the server or the
network does: `seconds_left` is asked before every write.
"""

import asyncio
import logging
import math
import time
from datetime import UTC, datetime

from evomerge_operator.kube.client import Client
from evomerge_operator.kube.errors import ConflictError, GoneError, KubeError
from evomerge_operator.kube.objects import Document

DURATION_SECONDS = 15
"""Another process may take over so long after the last renewal it saw."""
DEADLINE_SECONDS = 10.0
"""This process stops writing so long after its last renewal."""
RETRY_SECONDS = 2.0
_WRITE_SECONDS = 1.0  # left for a write that begins now to arrive
_ROOT = "/apis/coordination.k8s.io/v1"
_log = logging.getLogger(__name__)


class Lease:
    """This process's view of the Lease."""

    def __init__(self, client: Client, namespace: str, name: str, identity: str) -> None:
        self._client = client
        self._path = f"{_ROOT}/namespaces/{namespace}/leases"
        self._name = name
        self._identity = identity
        self._held_until = 0.0
        self._answered_at = -math.inf
        self._seen: tuple[str, str] | None = None  # holder and renewal that another process wrote, and
        self._seen_at = 0.0  # when they were first seen, by our clock: the other's clock is not ours

    def seconds_left(self) -> float:
        """How long a write that begins now may take; 0 or less: none may begin."""
        return self._held_until - _WRITE_SECONDS - time.monotonic()

    def seconds_unanswered(self) -> float:
        """How long ago the API server last answered about the Lease, whoever holds it; infinite before it ever did."""
        return time.monotonic() - self._answered_at

    async def win(self) -> None:
        """Return once the Lease is ours."""
        while not await self._tried():
            await asyncio.sleep(RETRY_SECONDS)

    async def keep(self) -> None:
        """Renew the Lease; return when it is lost."""
        while time.monotonic() < self._held_until:
            await asyncio.sleep(RETRY_SECONDS)
            await self._tried()

    async def release(self) -> None:
        """Let another process take over at once."""
        if time.monotonic() >= self._held_until:
            return
        self._held_until = 0.0
        try:
            lease = await self._client.request("get", f"{self._path}/{self._name}", timeout=RETRY_SECONDS)
            if lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                await self._client.request("update", f"{self._path}/{self._name}", body=lease, timeout=RETRY_SECONDS)
        except KubeError as error:
            _log.info("the Lease was not given back: %s", error)

    async def _tried(self) -> bool:
        """Create, take over or renew the Lease, if that is allowed."""
        asked = time.monotonic()
        try:
            won = await self._written()
        except (GoneError, ConflictError):
            self._answered_at = time.monotonic()
            return False  # another process was faster
        except KubeError as error:
            _log.warning("the Lease could not be renewed: %s", error)
            return False
        self._answered_at = time.monotonic()
        if won:
            self._held_until = asked + DEADLINE_SECONDS
        else:
            self._held_until = 0.0
        return won

    async def _written(self) -> bool:
        path = f"{self._path}/{self._name}"
        try:
            lease = await self._client.request("get", path, timeout=RETRY_SECONDS)
        except GoneError:
            await self._client.request("create", self._path, body=self._new(), timeout=RETRY_SECONDS)
            return True
        spec = lease.get("spec") or {}
        if not self._may_take(spec):
            return False
        lease["spec"] = self._spec(spec)
        await self._client.request("update", path, body=lease, timeout=RETRY_SECONDS)  # by its resourceVersion
        return True

    def _may_take(self, spec: Document) -> bool:
        holder = spec.get("holderIdentity") or ""
        if holder in ("", self._identity):
            return True
        seen = (holder, spec.get("renewTime") or "")
        if seen != self._seen:
            self._seen, self._seen_at = seen, time.monotonic()
        return time.monotonic() - self._seen_at > (spec.get("leaseDurationSeconds") or DURATION_SECONDS)

    def _spec(self, before: Document) -> Document:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        mine = before.get("holderIdentity") == self._identity
        changes = before.get("leaseTransitions") or 0
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": DURATION_SECONDS,
            "acquireTime": before.get("acquireTime", now) if mine else now,
            "renewTime": now,
            "leaseTransitions": changes if mine else changes + 1,
        }

    def _new(self) -> Document:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name},
            "spec": self._spec({"leaseTransitions": -1}),
        }
