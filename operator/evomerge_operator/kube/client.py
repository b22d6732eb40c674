"""The connection to the API server: plain JSON in and out, errors mapped once.

`kubernetes.aio` brings the configuration, credentials and connections. Its typed models are passed by: a search sees
hundreds of objects a second, and they take longer than all the rest.
"""

import json
import os
from collections.abc import Mapping
from typing import NoReturn
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config

from evomerge_operator.kube.errors import (
    ConflictError,
    GoneError,
    KubeError,
    RefusedError,
    UnavailableError,
)
from evomerge_operator.kube.objects import Document
from evomerge_operator.metrics import API_REQUESTS

MERGE_PATCH = "application/merge-patch+json"
_TIMEOUT_SECONDS = 30.0
_CONNECTIONS = 32


class Client:
    """An open connection; `close` it."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api

    @classmethod
    async def connect(cls) -> "Client":
        """Connect as the pod's service account, or else as KUBECONFIG says."""
        configuration = Configuration()
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            await load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        configuration.connection_pool_maxsize = _CONNECTIONS
        return cls(ApiClient(configuration))

    async def close(self) -> None:
        """Close all connections."""
        await self._api.close()  # type: ignore[no-untyped-call]

    async def request(
        self,
        verb: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Document | None = None,
        timeout: float = _TIMEOUT_SECONDS,
    ) -> Document:
        """One request; `verb` is Kubernetes' (get, list, create, patch, update, delete). Returns the answer's JSON.

        Raises:
            KubeError: a leaf of the tree, with the server's words.
        """
        return _parsed(await self._send(verb, path, query, body, timeout))

    async def list_text(self, path: str, query: Mapping[str, str]) -> bytes:
        """As `request` for a list, unparsed: it may be so large that another process had better parse it."""
        return await self._send("list", path, query, None, _TIMEOUT_SECONDS)

    async def _send(
        self, verb: str, path: str, query: Mapping[str, str] | None, body: Document | None, timeout: float
    ) -> bytes:
        method = _METHODS[verb]
        headers = {"Accept": "application/json", "User-Agent": "evomerge-operator"}
        headers["Content-Type"] = MERGE_PATCH if method == "PATCH" else "application/json"
        code, status = "unanswered", 0
        try:
            await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
            url = self._api.configuration.host + path + (f"?{urlencode(query)}" if query else "")
            answer = await self._api.rest_client.request(  # type: ignore[no-untyped-call]
                method, url, headers=headers, body=body, _request_timeout=aiohttp.ClientTimeout(total=timeout)
            )
            text, status = bytes(await answer.read()), answer.status
            code = str(status)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise UnavailableError(f"the API server does not answer: {error or type(error).__name__}") from error
        finally:
            API_REQUESTS.labels(verb, _resource(path), code).inc()
        if status >= 400:
            _raise(status, text)
        return text


_METHODS = {
    "get": "GET",
    "list": "GET",
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
}


def _parsed(text: bytes) -> Document:
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise UnavailableError(f"the API server answered {text[:80]!r} instead of JSON") from error
    return parsed if isinstance(parsed, dict) else {}


def _raise(status: int, text: bytes) -> NoReturn:
    try:
        message = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        message = f"{status}: {text[:200].decode(errors='replace')}"
    raise _error(status)(message)


def _error(status: int) -> type[KubeError]:
    if status == 404:
        return GoneError
    if status == 409:
        return ConflictError
    # 401: an expired token is read anew; 410: a continued list has expired.
    if status in (401, 408, 410, 429) or status >= 500:
        return UnavailableError
    return RefusedError


def _resource(path: str) -> str:
    """The kind of object that a path names: jobs, mergecandidates/status."""
    parts = path.strip("/").split("/")
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    if rest and rest[0] == "namespaces" and len(rest) > 2:
        rest = rest[2:]
    if not rest:
        return "discovery"
    return f"{rest[0]}/{rest[2]}" if len(rest) > 2 else rest[0]
