"""A real Prometheus for the tests."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

Series = list[dict[str, Any]]


@dataclass(frozen=True)
class Prometheus:
    """A running server, by its address."""

    url: str

    def query(self, expression: str) -> Series:
        """The instant vector of the expression now: items with `metric` (labels) and `value` (time, text)."""
        result: Series = self.api("query", query=expression)["result"]
        return result

    def targets(self) -> list[dict[str, Any]]:
        """The active targets, with `health`, `lastError`, `labels`."""
        found: list[dict[str, Any]] = self.api("targets")["activeTargets"]
        return found

    def wait_for(self, expression: str, holds: Callable[[Series], bool] = bool, seconds: float = 60.0) -> Series:
        """The expression's series as soon as they are as wanted; the test fails when they are not in time."""
        end = time.monotonic() + seconds
        while not holds(series := self.query(expression)):
            if time.monotonic() > end:
                problems = [t["lastError"] for t in self.targets() if t["lastError"]]
                pytest.fail(f"{expression} is not as wanted after {seconds:g} s: {series}; scrape errors: {problems}")
            time.sleep(0.5)
        return series

    def api(self, path: str, **parameters: str) -> Any:
        """The data of one call of the HTTP API; the test fails with Prometheus's words on an error."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - our own http address
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            pytest.fail(f"{path} {parameters}: {error.read().decode()}")


@contextmanager
def running_prometheus(folder: Path, config: Mapping[str, Any]) -> Iterator[Prometheus]:
    """A server with this configuration (rule files are relative to `folder`), while the context lasts."""
    program = shutil.which("prometheus") or pytest.fail("no `prometheus` found: please install it")
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = [
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        "--scrape.discovery-reload-interval=1s",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, *options, f"--web.listen-address={address}"], stdout=log, stderr=log, cwd=folder
        )
        try:
            _wait(f"http://{address}", process, folder / "log")
            yield Prometheus(f"http://{address}")
        finally:
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=5):  # noqa: S310
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"Prometheus did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
