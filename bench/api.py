"""The test cluster's API server for benches: plain requests and watches, as an administrator."""

import asyncio
import base64
import contextlib
import json
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

Document = dict[str, Any]


@dataclass(frozen=True)
class Session:
    """Open connections."""

    http: aiohttp.ClientSession
    server: str


@asynccontextmanager
async def session() -> AsyncIterator[Session]:
    """Connections to the cluster of KUBECONFIG, as `lab` writes it."""
    config = json.loads(Path(os.environ["KUBECONFIG"]).read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    tls = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    async with aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {user['token']}"},
        connector=aiohttp.TCPConnector(ssl=tls, limit=64),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=30),
    ) as http:
        yield Session(http, cluster["server"])


async def request(at: Session, method: str, path: str, body: Document | None = None, *, missing: bool = False) -> Any:
    """One request; `missing`: it is no error if the object is not there (any more)."""
    kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
    data = None if body is None else json.dumps(body)
    async with at.http.request(method, at.server + path, data=data, headers={"Content-Type": kind}) as answer:
        if answer.status >= 400 and not (missing and answer.status == 404):
            raise RuntimeError(f"{method} {path}: {await answer.text()}")
        return await answer.json()


async def watch(at: Session, path: str, selector: str = "") -> AsyncIterator[Document]:
    """Every event from now on, for ever; what is there comes first, as ADDED, and again whenever the watch ended."""
    url = f"{at.server}{path}?watch=1&labelSelector={selector}"
    while True:
        with contextlib.suppress(aiohttp.ClientError):
            async with at.http.get(url) as answer:
                buffer = b""
                async for piece in answer.content.iter_any():
                    *lines, buffer = (buffer + piece).split(b"\n")
                    for event in map(json.loads, lines):
                        if event["type"] != "ERROR":
                            yield event


async def gather(coroutines: list[Any], at_once: int = 32) -> list[Any]:
    """All of them, so many at once."""
    room = asyncio.Semaphore(at_once)

    async def one(coroutine: Any) -> Any:
        async with room:
            return await coroutine

    return await asyncio.gather(*map(one, coroutines))
