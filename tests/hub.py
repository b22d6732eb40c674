"""A hub on loopback for tests: it answers as the Hugging Face hub does what `snapshot_download` and `model_info` ask.

Folders are served as repositories of one commit and one branch, main; every request is kept for tests to look at.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_CHUNK = 1 << 16


@dataclass
class Hub:
    """`repos` maps org/name to the folder served at COMMIT; `gated` names those that nobody may read.

    While `broken`, every request is answered with 503. `requests` holds the path of every request.
    """

    endpoint: str
    repos: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    broken: bool = False
    requests: list[str] = field(default_factory=list)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.hub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()


def speak_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does when it is set before the client is first imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        hub.requests.append(path)
        parts = path.strip("/").split("/")
        if hub.broken:
            return self._refuse(503, "", body)
        if parts[:2] == ["api", "models"]:
            repo, commit, name = "/".join(parts[2:4]), "/".join(parts[5:]) or "main", None
        elif parts[2:3] == ["resolve"]:
            repo, commit, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        else:
            return self._refuse(404, "", body)
        if repo in hub.gated:
            return self._refuse(403, "GatedRepo", body)
        if repo not in hub.repos:
            return self._refuse(401, "RepoNotFound", body)
        if commit not in (COMMIT, "main"):
            return self._refuse(404, "RevisionNotFound", body)
        if name is None:
            is_tree = parts[4:5] == ["tree"]
            return self._send_json(_tree(hub.repos[repo]) if is_tree else {"id": repo, "sha": COMMIT})
        if not (hub.repos[repo] / name).is_file():
            return self._refuse(404, "EntryNotFound", body)
        return self._send_file(hub.repos[repo] / name, body)

    def _send_json(self, answer: Any) -> None:
        content = json.dumps(answer).encode()
        self._start(200, len(content), {"Content-Type": "application/json"})
        self.wfile.write(content)

    def _send_file(self, file: Path, body: bool) -> None:
        with file.open("rb") as content:
            etag = hashlib.file_digest(content, "sha256").hexdigest()
        self._start(200, file.stat().st_size, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        if not body:
            return
        with file.open("rb") as content:
            while chunk := content.read(_CHUNK):
                self.wfile.write(chunk)

    def _refuse(self, status: int, code: str, body: bool) -> None:
        content = json.dumps({"error": code}).encode()
        self._start(status, len(content), {"X-Error-Code": code, "X-Error-Message": code})
        if body:
            self.wfile.write(content)

    def _start(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the requests are kept."""


def _tree(folder: Path) -> list[dict[str, Any]]:
    tree: list[dict[str, Any]] = []
    for file in sorted(folder.rglob("*")):
        kind = "file" if file.is_file() else "directory"
        size = file.stat().st_size if file.is_file() else 0
        name = str(file.relative_to(folder))
        tree.append({"type": kind, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": size, "path": name})  # noqa: S324
    return tree
