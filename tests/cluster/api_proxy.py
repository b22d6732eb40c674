"""A proxy before the API server that misbehaves as a test wants it to. Plain HTTP towards the operator."""

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_HOPS = ("connection", "transfer-encoding", "content-length", "keep-alive")


@dataclass(frozen=True)
class Request:
    """What a rule sees of a request."""

    method: str
    resource: str
    """As in jobs, mergecandidates/status."""
    watches: bool
    names_one: bool
    """Whether it is about one object, not a collection."""

    @classmethod
    def of(cls, method: str, url: str) -> "Request":
        """A request by its line."""
        parts, query = urlsplit(url).path.strip("/").split("/"), dict(parse_qsl(urlsplit(url).query))
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        if len(rest) > 2 and rest[0] == "namespaces":
            rest = rest[2:]
        resource = f"{rest[0]}/{rest[2]}" if len(rest) > 2 else "".join(rest[:1])
        return cls(method, resource, query.get("watch") in ("true", "1"), len(rest) > 1)

    @property
    def lists(self) -> bool:
        """Whether it asks for a collection as it is now."""
        return self.method == "GET" and bool(self.resource) and not self.names_one and not self.watches


@dataclass(frozen=True)
class Refused:
    """The proxy answers in the API server's place."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Lost:
    """The API server does as asked, and its answer never arrives."""


@dataclass(frozen=True)
class Streamed:
    """A watch says that one event, and ends."""

    event: Mapping[str, Any]


@dataclass(frozen=True)
class Silent:
    """A watch stays open and says nothing."""


Fate = Refused | Lost | Streamed | Silent
Rule = Callable[[Request], Fate | None]
"""What becomes of a request; None: it is passed on."""


class ApiProxy:
    """The proxy; `rule` may be changed at any time, and is asked for every request by itself."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self.rule: Rule = lambda _: None
        self._server = urlsplit(cluster["server"])
        self._tls = ssl.create_default_context(cadata=_pem(cluster["certificate-authority-data"]))
        self._lock = threading.Lock()
        self._watches: set[socket.socket] = set()
        self._config = config

    def kubeconfig(self, path: Path, url: str) -> Path:
        """Write the kubeconfig with which a process goes through the proxy."""
        clusters = [{"name": self._config["clusters"][0]["name"], "cluster": {"server": url}}]
        path.write_text(json.dumps(self._config | {"clusters": clusters}))
        return path

    def cut_watches(self) -> None:
        """End every watch that is open: they are asked for anew, and meet the rule."""
        with self._lock:
            for open_watch in self._watches:
                with suppress(OSError):
                    open_watch.shutdown(socket.SHUT_RDWR)

    def fate(self, request: Request) -> Fate | None:
        """What becomes of a request; rules may count, so they are asked one after the other."""
        with self._lock:
            return self.rule(request)

    def connect(self) -> http.client.HTTPSConnection:
        """A connection to the API server."""
        return http.client.HTTPSConnection(self._server.hostname or "", self._server.port, context=self._tls)

    @contextmanager
    def watching(self, connection: socket.socket) -> Iterator[None]:
        """A watch that can be cut meanwhile."""
        with self._lock:
            self._watches.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._watches.discard(connection)


@contextmanager
def api_proxy(kubeconfig: Path) -> Iterator[tuple[ApiProxy, str]]:
    """A proxy before the API server of the kubeconfig, and its address."""
    proxy = ApiProxy(kubeconfig)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        proxy.cut_watches()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: ApiProxy

    def _serve(self) -> None:
        request = Request.of(self.command, self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fate = self.proxy.fate(request)
        match fate:
            case Refused():
                self._answer(fate.code, _status(fate.code), fate.headers)
            case Streamed():
                self._begin_stream(200)
                self.wfile.write(json.dumps(fate.event).encode() + b"\n")
            case Silent():
                self._begin_stream(200)
                with self.proxy.watching(self.connection):
                    self.connection.recv(1)  # until one side ends it
            case _ if request.watches:
                self._stream(body)
            case _:
                code, answer, headers = self._ask(body)
                if fate is None:
                    self._answer(code, answer, headers)
                self.close_connection = fate is not None

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - so the base class wants them

    def _ask(self, body: bytes) -> tuple[int, bytes, Mapping[str, str]]:
        upstream = self.proxy.connect()
        try:
            upstream.request(self.command, self.path, body or None, self._headers())
            reply = upstream.getresponse()
            return reply.status, reply.read(), {k: v for k, v in reply.getheaders() if k.lower() not in _HOPS}
        finally:
            upstream.close()

    def _stream(self, body: bytes) -> None:
        upstream = self.proxy.connect()
        upstream.request(self.command, self.path, body or None, self._headers())
        reply = upstream.getresponse()
        self._begin_stream(reply.status)
        with self.proxy.watching(self.connection), suppress(OSError):
            while line := reply.readline():
                self.wfile.write(line)
        upstream.close()

    def _begin_stream(self, code: int) -> None:
        """An answer that ends with its connection."""
        self.close_connection = True
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()

    def _answer(self, code: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(code)
        for name, value in ({"Content-Type": "application/json"} | dict(headers)).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _headers(self) -> dict[str, str]:
        return {k: v for k, v in self.headers.items() if k.lower() not in (*_HOPS, "host", "accept-encoding")}

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: a test's log is the operator's."""


def status_error(code: int, reason: str) -> dict[str, Any]:
    """The API server's way to say an error."""
    message = f"made to fail: {reason}"
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def _status(code: int) -> bytes:
    reasons = {410: "Expired", 429: "TooManyRequests"}
    return json.dumps(status_error(code, reasons.get(code, "InternalError"))).encode()


def _pem(data: str) -> str:
    import base64

    return base64.b64decode(data).decode()
