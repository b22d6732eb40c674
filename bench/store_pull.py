"""store.pull: a model from S3 into the node cache, against the bare rate of loopback and disk, and against boto3.

The server is SeaweedFS on loopback, the model three shards of random bytes. The bare rate is the slower of two: reading
the same bytes from the same server by plain sockets and forgetting them, and writing as many bytes to the same disk and
syncing them. Where disk and loopback are faster than the cores (the server works on them too), no pull that writes and
hashes what it reads comes near that: `vs_plain` is against the least that a pull must do there, plain sockets into
files that are synced and hashed. boto3's reference is `download_file` as it comes, file by file, its files then synced
as ours are, but not hashed. All turn by turn.

With `--gigabits` the loopback is held to that rate, in a network namespace of its own (Linux, root): a machine whose
network is what limits it, as a node's is beside its cores. These figures bear the name `store.pull.limited`.
"""

import argparse
import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from figures import figure  # noqa: E402

from evomerge_contract.manifest import S3, Storage  # noqa: E402
from evomerge_worker.store import Store  # noqa: E402
from s3 import S3Server, running_s3  # noqa: E402

SHARDS = 3
CHUNK = 1 << 20
CONNECTIONS = 8
LIMITED = "EVOMERGE_BENCH_LIMITED"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1500, help="size of the model")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gigabits", type=float, help="hold the loopback to so many Gbit/s")
    options = parser.parse_args()
    if options.gigabits is not None and LIMITED not in os.environ:
        sys.exit(subprocess.call(["unshare", "--net", sys.executable, *sys.argv], env=os.environ | {LIMITED: "yes"}))
    if options.gigabits is not None:
        limit(options.gigabits)
    with tempfile.TemporaryDirectory(prefix="evomerge-bench-") as temporary:
        folder = Path(temporary)
        (folder / "server").mkdir()
        with running_s3(folder / "server") as process:
            os.environ.update(process.server.environment)
            size = publish(process.server, folder / "model", options.megabytes)
            seconds = measure(process.server, folder, size, options.repeats)
            if options.gigabits is None:
                report("store.pull", size, seconds)
            else:
                report("store.pull.limited", size, seconds, gigabits_per_second=options.gigabits)


def limit(gigabits: float) -> None:
    """Bring up this namespace's loopback, held to a rate."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    held = ["rate", f"{gigabits}gbit", "burst", "4mb", "latency", "50ms"]
    subprocess.run(["tc", "qdisc", "add", "dev", "lo", "root", "tbf", *held], check=True)


def publish(server: S3Server, folder: Path, megabytes: int) -> int:
    """Put a model of random bytes at s3://bench/model/; its bytes."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for shard in range(SHARDS):
        with (folder / f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors").open("wb") as file:
            for _ in range(megabytes // SHARDS):
                file.write(os.urandom(CHUNK))
    size = sum(path.stat().st_size for path in folder.iterdir())
    server.upload(folder, "bench", "model/")
    shutil.rmtree(folder)
    return size


def measure(server: S3Server, folder: Path, size: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, turn by turn; a first turn warms up."""
    ways: dict[str, Callable[[Path], None]] = {
        "loopback": lambda _: read_bare(server),
        "disk": lambda out: write_bare(out, size),
        "plain": lambda out: plain(server, out),
        "boto3": lambda out: download(server, out),
        "ours": lambda out: pull(server, out),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            out = folder / "out"
            out.mkdir()
            os.sync()
            began = time.perf_counter()
            way(out)
            if turn:
                seconds[name].append(time.perf_counter() - began)
            shutil.rmtree(out)
    return seconds


def report(name: str, size: int, seconds: dict[str, list[float]], **limit: float) -> None:
    """Ours against the bare rate and against boto3."""
    bare = [max(pair) for pair in zip(seconds["loopback"], seconds["disk"], strict=True)]
    rates = {f"{way}_mb_per_second": [round(size / s / 1e6) for s in values] for way, values in seconds.items()}
    figure(
        "store_pull",
        name,
        [b / o for b, o in zip(bare, seconds["ours"], strict=True)],
        "times the bare rate",
        reference="the slower of reading the same bytes from the server by plain sockets, and writing and syncing them",
        goal=">= 0.9",
        bytes=size,
        **limit,
        **rates,
    )
    figure(
        "store_pull",
        f"{name}.vs_plain",
        [b / o for b, o in zip(seconds["plain"], seconds["ours"], strict=True)],
        "times the rate of plain sockets into files",
        reference="plain sockets into files, eight ranges at a time, then synced and hashed",
        goal="",
    )
    figure(
        "store_pull",
        f"{name}.vs_boto3",
        [b / o for b, o in zip(seconds["boto3"], seconds["ours"], strict=True)],
        "times boto3's rate",
        reference="boto3's download_file with its defaults, file by file, then synced",
        goal=">= 1",
    )


def read_bare(server: S3Server) -> None:
    """Read every object over plain sockets, eight ranges at a time, and forget it."""
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(lambda wanted: receive(server, *wanted, None), ranges(server)))


def plain(server: S3Server, out: Path) -> None:
    """The same into files, which are then synced and hashed."""
    for name, size in objects(server).items():
        with (out / Path(name).name).open("wb") as file:
            file.truncate(size)
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(lambda wanted: receive(server, *wanted, out / Path(wanted[0]).name), ranges(server)))
        list(threads.map(finish, out.iterdir()))


def ranges(server: S3Server) -> list[tuple[str, int, int]]:
    """Every object cut in eight: key, first byte, byte after the last."""
    found = []
    for name, size in objects(server).items():
        step = max(1, -(-size // CONNECTIONS))
        found += [(name, start, min(start + step, size)) for start in range(0, size, step)]
    return found


def receive(server: S3Server, name: str, start: int, end: int, path: Path | None) -> None:
    """Read a range into its place in the file, or forget it."""
    url = urlsplit(server.client().generate_presigned_url("get_object", Params={"Bucket": "bench", "Key": name}))
    connection = http.client.HTTPConnection(url.netloc)
    connection.request("GET", f"{url.path}?{url.query}", headers={"Range": f"bytes={start}-{end - 1}"})
    answer, buffer = connection.getresponse(), memoryview(bytearray(CHUNK))
    target = None if path is None else os.open(path, os.O_WRONLY)
    while got := answer.readinto(buffer):
        if target is not None:
            os.pwrite(target, buffer[:got], start)
        start += got
    connection.close()
    if target is not None:
        os.close(target)
    if start != end:
        raise RuntimeError(f"{end - start} bytes did not come")


def finish(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        hashlib.file_digest(file, "sha256")


def write_bare(out: Path, size: int) -> None:
    """Write as many bytes and sync them."""
    chunk = os.urandom(CHUNK)
    with (out / "file").open("wb") as file:
        for _ in range(size // CHUNK):
            file.write(chunk)
        os.fsync(file.fileno())


def download(server: S3Server, out: Path) -> None:
    """What boto3 does by itself."""
    client = server.client()
    for name in objects(server):
        path = out / Path(name).name
        client.download_file("bench", name, str(path))
        with path.open("rb") as file:
            os.fsync(file.fileno())


def pull(server: S3Server, out: Path) -> None:
    """What a worker does."""
    Store(Storage(s3=S3(endpoint=server.endpoint)), out).model("s3://bench/model")


def objects(server: S3Server) -> dict[str, int]:
    found = server.client().list_objects_v2(Bucket="bench", Prefix="model/")["Contents"]
    return {o["Key"]: o["Size"] for o in found}


if __name__ == "__main__":
    main()
