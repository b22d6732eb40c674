"""The one door to Kubernetes: each request that the operator ever makes is a method here.

Every write is guarded: it is refused once the Lease is lost, and can be made to kill the process (see failpoints).
What a stale leader could overwrite carries the resourceVersion that was read; nothing is ever forced.
"""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from evomerge_contract.resource import API_VERSION, EVOMERGES, MERGE_CANDIDATES
from evomerge_operator.kube.client import Client
from evomerge_operator.kube.errors import ConflictError, GoneError, NotLeaderError, RefusedError, UnavailableError
from evomerge_operator.kube.failpoints import failpoint
from evomerge_operator.kube.objects import DIGEST, STAGE_LABEL, Document, Parent, candidate_name

_EVOMERGE = f"/apis/{API_VERSION}"
PAGE = 500
"""MergeCandidates of one list: 9 MB with the largest genomes."""
_STRICT = {"fieldValidation": "Strict"}
_WRITES_AT_ONCE = 24
"""Fewer than the client's connections, so that reads get on too."""


class Fence(Protocol):
    """Who knows whether this process may write."""

    def seconds_left(self) -> float:
        """How long a write that begins now may take; 0 or less: none may begin."""


WRITES: list[str] = []
"""The names of all writes: what the crash tests go through."""


P = ParamSpec("P")
R = TypeVar("R")


def _write(
    method: Callable[Concatenate["Gateway", P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate["Gateway", P], Coroutine[Any, Any, R]]:
    WRITES.append(method.__name__)

    @functools.wraps(method)
    async def guarded(self: "Gateway", /, *args: P.args, **kwargs: P.kwargs) -> R:
        async with self._writing:  # asked after the wait for a turn, not before
            left = self.fence.seconds_left()
            if left <= 0:
                raise NotLeaderError(f"{method.__name__}: the Lease is lost; nothing was written")
            failpoint(method.__name__, "before")
            try:
                async with asyncio.timeout(left):
                    return await method(self, *args, **kwargs)
            except TimeoutError as error:
                raise UnavailableError(f"{method.__name__}: no answer while the Lease was held for sure") from error
            finally:  # also when news of it come before its answer, and nobody waits any more
                failpoint(method.__name__, "after")

    return guarded


class Gateway:
    """Reads and writes of the operator; raises the leaves of KubeError."""

    def __init__(self, client: Client, fence: Fence) -> None:
        self._client = client
        self._writing = asyncio.Semaphore(_WRITES_AT_ONCE)
        self.fence = fence

    async def served(self) -> bool:
        """Whether the API server knows our kinds (a chart brings them together with the operator)."""
        try:
            await self._client.request("get", _EVOMERGE)
        except GoneError:
            return False
        return True

    async def evomerge(self, namespace: str, name: str) -> Document:
        """An EvoMerge as it is now."""
        return await self._client.request("get", _path(_EVOMERGE, namespace, EVOMERGES, name))

    async def candidate_page(self, parent: Parent, following: str, *, stage: str) -> bytes:
        """A page of the MergeCandidates of a stage of an EvoMerge, as JSON, in the order of their names.

        `following` is what the page before says of the next one; empty: the first.
        """
        selector = f"{parent.selector},{STAGE_LABEL}={stage}"
        query = {"labelSelector": selector, "limit": str(PAGE), "continue": following}
        path = _path(_EVOMERGE, parent.namespace, MERGE_CANDIDATES)
        return await self._client.list_text(path, query)

    async def candidate(self, parent: Parent, stage: str, index: int) -> Document:
        """A MergeCandidate."""
        name = candidate_name(parent, stage, index)
        return await self._client.request("get", _path(_EVOMERGE, parent.namespace, MERGE_CANDIDATES, name))

    async def jobs(self, parent: Parent) -> list[Document]:
        """Every Job of an EvoMerge."""
        return [job async for job in self._list(_path("/apis/batch/v1", parent.namespace, "jobs"), parent.selector)]

    async def pods(self, parent: Parent) -> list[Document]:
        """Every pod of an EvoMerge."""
        return [pod async for pod in self._list(_path("/api/v1", parent.namespace, "pods"), parent.selector)]

    async def config_map(self, namespace: str, name: str) -> Document:
        """A ConfigMap."""
        return await self._client.request("get", _path("/api/v1", namespace, "configmaps", name))

    async def events_about(self, namespace: str, uid: str) -> list[Document]:
        """The Events that others wrote about an object."""
        query = {"fieldSelector": f"involvedObject.uid={uid}"}
        answer = await self._client.request("list", _path("/api/v1", namespace, "events"), query=query)
        return answer.get("items") or []

    async def check_job(self, job: Document) -> None:
        """Ask whether a Job would be accepted; creates nothing.

        Raises:
            RefusedError: it would not, in the server's words.
        """
        path = _path("/apis/batch/v1", job["metadata"]["namespace"], "jobs")
        query = {"dryRun": "All", **_STRICT}
        with contextlib.suppress(ConflictError):  # one of that name is there, so it was accepted before
            await self._client.request("create", path, query=query, body=job)

    @_write
    async def create_candidate(self, candidate: Document, parent: Parent) -> Document:
        """Create a MergeCandidate; one that is there with the same spec is as good."""
        path = _path(_EVOMERGE, parent.namespace, MERGE_CANDIDATES)
        return await self._create(path, candidate, parent, lambda there: bool(there["spec"] == candidate["spec"]))

    @_write
    async def tell_candidate(self, candidate: Document, status: Document) -> Document:
        """Set a MergeCandidate's status, unless someone else has written since `candidate` was read."""
        return await self._set_status(MERGE_CANDIDATES, candidate, status)

    @_write
    async def set_status(self, evomerge: Document, status: Document) -> Document:
        """Set an EvoMerge's status, unless someone else has written since `evomerge` was read."""
        return await self._set_status(EVOMERGES, evomerge, status)

    @_write
    async def create_job(self, job: Document, parent: Parent) -> Document:
        """Create a Job; one of the same name is as good if it is this EvoMerge's and has the same tasks."""
        path = _path("/apis/batch/v1", parent.namespace, "jobs")
        return await self._create(path, job, parent, lambda there: _digest(there) == _digest(job), _STRICT)

    @_write
    async def delete_job(self, namespace: str, name: str, uid: str) -> None:
        """Delete a Job and its pods; it is no error if it is gone."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        with contextlib.suppress(GoneError, ConflictError):  # a conflict: another object has the name now
            await self._client.request("delete", _path("/apis/batch/v1", namespace, "jobs", name), body=body)

    @_write
    async def create_config_map(self, config_map: Document, parent: Parent) -> Document:
        """Create a ConfigMap; one of the same name is as good if it is this EvoMerge's and holds the same."""
        path = _path("/api/v1", parent.namespace, "configmaps")
        return await self._create(path, config_map, parent, lambda there: _digest(there) == _digest(config_map))

    @_write
    async def delete_config_map(self, namespace: str, name: str) -> None:
        """Delete a ConfigMap; it is no error if it is gone."""
        with contextlib.suppress(GoneError):
            await self._client.request("delete", _path("/api/v1", namespace, "configmaps", name))

    @_write
    async def post_event(self, event: Document) -> None:
        """Post an Event, or count it up when one of the same name, so of the same content, is there."""
        metadata = event["metadata"]
        path = _path("/api/v1", metadata["namespace"], "events")
        try:
            await self._client.request("create", path, body=event)
        except ConflictError:
            there = await self._client.request("get", f"{path}/{metadata['name']}")
            again = {"count": there.get("count", 1) + 1, "lastTimestamp": event["lastTimestamp"]}
            await self._client.request("patch", f"{path}/{metadata['name']}", body=again)

    @_write
    async def delete_evomerge(self, evomerge: Document) -> None:
        """Delete an EvoMerge whose time after its end is over."""
        metadata = evomerge["metadata"]
        body = {"propagationPolicy": "Background", "preconditions": {"uid": metadata["uid"]}}
        path = _path(_EVOMERGE, metadata["namespace"], EVOMERGES, metadata["name"])
        with contextlib.suppress(GoneError):
            await self._client.request("delete", path, body=body)

    async def _set_status(self, plural: str, document: Document, status: Document) -> Document:
        metadata = document["metadata"]
        path = _path(_EVOMERGE, metadata["namespace"], plural, metadata["name"]) + "/status"
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": status}
        return await self._client.request("patch", path, body=body)

    async def _create(
        self,
        path: str,
        document: Document,
        parent: Parent,
        same: Callable[[Document], bool],
        query: Mapping[str, str] | None = None,
    ) -> Document:
        try:
            return await self._client.request("create", path, query=query, body=document)
        except ConflictError:
            # Perhaps an earlier answer got lost; perhaps the name is someone else's, or of something on its way out.
            there = await self._client.request("get", f"{path}/{document['metadata']['name']}")
            if "deletionTimestamp" in there["metadata"]:
                raise
            if not parent.owns(there):
                raise RefusedError(_in_the_way(there)) from None
            if not same(there):
                raise
            return there

    async def _list(self, path: str, selector: str) -> AsyncIterator[Document]:
        query = {"labelSelector": selector, "limit": str(PAGE)}
        while True:
            answer = await self._client.request("list", path, query=query)
            for item in answer.get("items") or []:
                yield item
            query["continue"] = answer.get("metadata", {}).get("continue") or ""
            if not query["continue"]:
                return


def _path(root: str, namespace: str, plural: str, name: str | None = None) -> str:
    return f"{root}/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "")


def _digest(document: dict[str, Any]) -> str | None:
    annotations = document["metadata"].get("annotations") or {}
    digest = annotations.get(DIGEST)
    return digest if isinstance(digest, str) else None


def _in_the_way(there: Document) -> str:
    name = f"{there['metadata']['namespace']}/{there['metadata']['name']}"
    return f"the {there['kind']} {name} is in the way: somebody else made it; delete it or rename the EvoMerge"
