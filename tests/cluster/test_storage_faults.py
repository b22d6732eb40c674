"""Storage that fails, under searches that really pull: what a person is told, and that a search goes on by itself once
the storage is mended."""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from image_references import Images
from kubernetes_cluster import Cluster
from operator_process import OperatorProcess
from proxy import proxy
from s3 import S3Process, S3Server
from searches import BUCKET, Search, light_manifest

CURED_WITHIN = 60.0
SPLITS = ("search", "select", "test")
WAITS = "StorageUnavailable"


@dataclass
class Storage:
    """What a search of the same name reads in S3: two models, three splits, and the Secret that opens them."""

    cluster: Cluster
    server: S3Server
    namespace: str
    name: str
    bucket: str = "faults"
    model: bytes = field(default_factory=lambda: save({"weight": np.random.default_rng(0).random((256, 64))}))

    @property
    def files(self) -> dict[str, bytes]:
        """All of it as it should be."""
        models = {f"{m}/model.safetensors": self.model for m in ("one", "two")}
        configs = {f"{m}/config.json": b"{}" for m in ("one", "two")}
        return models | configs | {f"{split}.jsonl": f'{{"text": "{split}"}}\n'.encode() for split in SPLITS}

    def fill(self) -> None:
        """Put everything there."""
        self.server.make_bucket(self.bucket)
        for name, content in self.files.items():
            self.put(name, content)

    def put(self, name: str, content: bytes) -> None:
        """Write one file."""
        self.server.client().put_object(Bucket=self.bucket, Key=self._key(name), Body=content)

    def delete(self, *names: str) -> None:
        """Remove files."""
        for name in names:
            self.server.client().delete_object(Bucket=self.bucket, Key=self._key(name))

    def mend(self, *names: str) -> None:
        """Put files there as they should be."""
        for name in names:
            self.put(name, self.files[name])

    def upload_in_parts(self, name: str) -> None:
        """Put a file there once more as it should be; its ETag is another then."""
        place = {"Bucket": self.bucket, "Key": self._key(name)}
        client = self.server.client()
        before = client.head_object(**place)["ETag"]
        place["UploadId"] = client.create_multipart_upload(**place)["UploadId"]
        part = {"PartNumber": 1, "ETag": client.upload_part(**place, PartNumber=1, Body=self.files[name])["ETag"]}
        assert client.complete_multipart_upload(**place, MultipartUpload={"Parts": [part]})["ETag"] != before

    def lock(self, key: str) -> None:
        """Write the Secret with this access key."""
        keys = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": self.server.secret}
        metadata = {"name": f"keys-{self.name}", "namespace": self.namespace}
        self.cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": keys})

    def unlock(self) -> None:
        """Write the Secret with the key that opens all."""
        self.lock(self.server.key)

    def uri(self, name: str) -> str:
        """Where a file lies."""
        return f"s3://{self.bucket}/{self._key(name)}"

    def search(self, image: str, endpoint: str | None = None, **settings: Any) -> Search:
        """Apply a search that reads all this."""
        s3 = {"endpoint": endpoint or self.server.endpoint, "region": "us-east-1", "secretName": f"keys-{self.name}"}
        jsonl = {split: self.uri(f"{split}.jsonl") for split in SPLITS}
        spec: dict[str, Any] = {
            "models": [{"name": m, "uri": self.uri(m)} for m in ("one", "two")],
            "storage": {"s3": s3},
            "evaluation": {"objectives": [{"name": "sums", "jsonl": jsonl, "metric": "exact_match"}]},
        }
        few: dict[str, Any] = {"candidates": 1, "parallelism": 1}  # what is on trial is not the load
        manifest = light_manifest(self.name, self.namespace, image, self.server, pulls=True, **few | spec | settings)
        return Search.apply(self.cluster, manifest)

    def _key(self, name: str) -> str:
        return f"{self.namespace}/{self.name}/{name}"


@dataclass(frozen=True)
class Fault:
    """What is wrong with a search's storage, what the search says of it (with {uri}, {server} filled in), the cure."""

    name: str
    breaks: Callable[[Storage], None]
    words: str
    cure: Callable[[Storage], None]
    bucket: str = "faults"


MISSING_BUCKET = f"missing-{uuid.uuid4().hex[:8]}"
NEW_RUN = "put it there, or name the right place in a new run"
AT_FIRST = [
    Fault(
        "wrong-key",
        lambda s: s.lock("nobody"),
        "spec.models[0].uri: {uri}/one cannot be read: {server} refuses the S3 credentials (InvalidAccessKeyId); mend "
        "them: on a cluster, in the Secret of spec.storage.s3.secretName",
        Storage.unlock,
    ),
    Fault(
        "missing-bucket",
        lambda s: None,
        "spec.models[0].uri: {uri}/one cannot be read: there is no bucket {bucket} at {server}; make it, or name the "
        "right one in a new run",
        Storage.fill,
        bucket=MISSING_BUCKET,
    ),
    Fault(
        "missing-model",
        lambda s: s.delete("two/config.json", "two/model.safetensors"),
        "spec.models[1].uri: {uri}/two is empty or does not exist; " + NEW_RUN,
        lambda s: s.mend("two/config.json", "two/model.safetensors"),
    ),
    Fault(
        "missing-split",
        lambda s: s.delete("select.jsonl"),
        "spec.evaluation.objectives[0].jsonl.select: {uri}/select.jsonl does not exist at {server}; " + NEW_RUN,
        lambda s: s.mend("select.jsonl"),
    ),
    Fault(
        "torn-shard",
        lambda s: s.put("one/model.safetensors", s.model[:-100]),
        "spec.models[0].uri: {uri}/one: model.safetensors is truncated or no safetensors file",
        lambda s: s.mend("one/model.safetensors"),
    ),
]
CHANGED = "is not what it was when the run was prepared; restore it, or start a new run"
LATER = [
    Fault(
        "corrupted-shard",
        lambda s: s.put("two/model.safetensors", s.model[:-1] + bytes([s.model[-1] ^ 1])),
        "spec.models[1].uri: {uri}/two " + CHANGED,
        lambda s: s.mend("two/model.safetensors"),
    ),
    Fault(
        "changed-config",
        lambda s: s.put("one/config.json", b'{"rope_theta": 1}'),
        "spec.models[0].uri: {uri}/one " + CHANGED,
        lambda s: s.mend("one/config.json"),
    ),
    Fault(
        "changed-items",
        lambda s: s.put("search.jsonl", b'{"text": "easier"}\n'),
        "spec.evaluation.objectives[0].jsonl.search: {uri}/search.jsonl " + CHANGED,
        lambda s: s.mend("search.jsonl"),
    ),
    Fault(
        "key-withdrawn",
        lambda s: s.lock("nobody"),
        "{server} refuses the S3 credentials (InvalidAccessKeyId)",
        Storage.unlock,
    ),
]


@pytest.fixture
def storages(cluster: Cluster, s3: S3Server, namespace: str, operator: OperatorProcess) -> Callable[..., Storage]:
    """Makes a search's storage with everything in its place, before an operator that is at work."""
    s3.make_bucket(BUCKET)
    operator.wait_until_ready()

    def make(name: str, bucket: str = "faults", **settings: Any) -> Storage:
        storage = Storage(cluster, s3, namespace, name, bucket, **settings)
        storage.unlock()
        if bucket == "faults":
            storage.fill()
        return storage

    return make


def test_what_prepare_cannot_read_is_told_and_the_search_begins_within_a_minute_of_the_cure(
    storages: Callable[..., Storage], images: Images
) -> None:
    faults = {fault.name: (fault, storages(fault.name, fault.bucket)) for fault in AT_FIRST}
    for fault, storage in faults.values():
        fault.breaks(storage)
    searches = {name: storage.search(images.light_worker) for name, (_, storage) in faults.items()}
    for name, (fault, storage) in faults.items():
        _tells(searches[name], fault, storage)
        assert searches[name].children("mergecandidates") == []
    for status in _recover(faults, searches).values():
        prepare = status["steps"]["prepare"]
        assert prepare["succeeded"] == 1
        assert prepare["waits"] >= 1
        assert prepare["failures"] == 0


def test_what_changes_in_mid_search_is_told_and_the_search_goes_on_within_a_minute_of_the_cure(
    storages: Callable[..., Storage], images: Images
) -> None:
    """A new upload of the same content is no change, whatever its ETag."""
    faults = {fault.name: (fault, storages(fault.name)) for fault in LATER}
    anew = storages("uploaded-anew")
    searches = {name: storage.search(images.light_worker) for name, (_, storage) in faults.items()}
    unchanged = anew.search(images.light_worker)
    for name, (fault, storage) in faults.items():
        searches[name].wait(_is_prepared, 60)
        fault.breaks(storage)
    unchanged.wait(_is_prepared, 60)
    anew.upload_in_parts("one/model.safetensors")
    for name, (fault, storage) in faults.items():
        _tells(searches[name], fault, storage)
    _recover(faults, searches)
    for search in searches.values():
        search.succeeds()
        assert _lost(search) == 0
        assert sum(c["status"]["waits"] for c in search.candidates().values()) >= 1
    unchanged.succeeds()
    assert all(c["status"]["attempts"] == 1 for c in unchanged.candidates().values())


def test_a_search_outlives_a_server_that_is_away_for_a_minute(
    storages: Callable[..., Storage], s3_process: S3Process, images: Images
) -> None:
    storage = storages("server-away")
    search = storage.search(images.light_worker, candidates=2, parallelism=2, faults={"evaluate": "sleep:1"})
    search.wait(lambda status: search.children("mergecandidates"))
    s3_process.stop()
    stopped = time.monotonic()
    try:
        status = search.wait(_waits, 60)
        words = f"{storage.server.endpoint} cannot be reached; is spec.storage.s3.endpoint right, and the server up?"
        assert words in status["message"]
        done = status["done"]
        time.sleep(max(0.0, stopped + 60 - time.monotonic()))  # the minute is the fault
    finally:
        s3_process.start()
    search.wait(_goes_on, CURED_WITHIN)
    assert search.succeeds()["done"] == 2
    assert done < 2
    assert _lost(search) == 0


def test_wrong_input_ends_the_search_at_the_first_attempt_within_a_minute_of_its_containers_start(
    storages: Callable[..., Storage], images: Images
) -> None:
    storage = storages("too-high")
    models = [{"name": "one", "uri": storage.uri("one")}, {"name": "two", "uri": storage.uri("").rstrip("/")}]
    search = storage.search(images.light_worker, models=models)
    status = search.fails()
    assert status["reason"] == "InvalidInput"
    advice = "has no config.json, but its folder one/ has one; is the path one level too high?"
    assert status["message"] == f"spec.models[1].uri: {models[1]['uri']} {advice}"
    assert status["steps"]["prepare"]["failures"] == 1
    told = datetime.fromisoformat(status["finishedAt"])
    assert (told - _container_started(search)).total_seconds() <= 60


def test_searches_that_share_a_volume_pull_a_model_once(
    storages: Callable[..., Storage],
    cluster: Cluster,
    s3: S3Server,
    namespace: str,
    images: Images,
    tmp_path: Path,
) -> None:
    """Both prepare at the same time; all other pods find what they need."""
    storage = storages("shared", model=save({"weight": np.random.default_rng(1).random(1 << 20)}))
    claim = _shared_volume(cluster, namespace, tmp_path / "volume")
    passed = Counter[str]()

    def count(data: bytes) -> bytes:
        passed["bytes"] += len(data)
        return data

    with proxy(s3.endpoint, count, address=cluster.address) as endpoint:
        settings = {"worker": {"cache": {"persistentVolumeClaim": {"claimName": claim}}}}
        first = storage.search(images.light_worker, endpoint, **settings)
        manifest = first.document()
        manifest["metadata"] = {"name": "other", "namespace": namespace}
        manifest["spec"]["export"]["uri"] += "-other"
        other = Search.apply(cluster, {k: manifest[k] for k in ("apiVersion", "kind", "metadata", "spec")})
        for search in (first, other):
            search.wait(lambda status: status.get("bestSource"))  # so every source alone has been scored
    models = 2 * len(storage.model)
    assert models < passed["bytes"] < 1.2 * models


def _tells(search: Search, fault: Fault, storage: Storage) -> None:
    """The search waits, and says why in its status, its conditions and an Event."""
    status = search.wait(_waits, 60)
    uri = storage.uri("").rstrip("/")
    words = fault.words.format(uri=uri, server=storage.server.endpoint, bucket=storage.bucket)
    assert words in status["message"], fault.name
    progressing = _condition(status, "Progressing")
    assert (progressing["status"], progressing["reason"]) == ("False", WAITS)
    assert words in progressing["message"]
    events = search.cluster.kubectl("describe", f"evomerge/{search.name}", f"--namespace={search.namespace}")
    assert f"Warning  {WAITS}" in events


def _recover(faults: Mapping[str, tuple[Fault, Storage]], searches: Mapping[str, Search]) -> dict[str, dict[str, Any]]:
    """Cure all; every search goes on within the time that it has. What each then says."""
    cured: dict[str, float] = {}
    for name, (fault, storage) in faults.items():
        fault.cure(storage)
        cured[name] = time.monotonic()
    some, going, took = next(iter(searches.values())), dict[str, dict[str, Any]](), dict[str, float]()
    while going.keys() < cured.keys() and time.monotonic() < max(cured.values()) + CURED_WITHIN:
        time.sleep(1)
        for item in some.cluster.get("evomerges", f"--namespace={some.namespace}")["items"]:
            name = item["metadata"]["name"]
            if name in cured and name not in going and _goes_on(item["status"]):
                going[name], took[name] = item["status"], time.monotonic() - cured[name]
    stuck = cured.keys() - going.keys()
    assert not stuck, "\n".join(searches[name].describe() for name in stuck)
    assert max(took.values()) <= CURED_WITHIN, took
    return going


def _waits(status: Mapping[str, Any]) -> bool:
    return (status.get("phase"), status.get("reason")) == ("Waiting", WAITS)


def _goes_on(status: Mapping[str, Any]) -> bool:
    return _is_prepared(status) and status.get("reason") != WAITS


def _is_prepared(status: Mapping[str, Any]) -> bool:
    return bool(status.get("conditions")) and _condition(status, "Prepared")["status"] == "True"


def _condition(status: Mapping[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in status["conditions"] if c["type"] == kind)
    return found


def _lost(search: Search) -> int:
    """Attempts that count as failures or as lost pods."""
    candidates = [c["status"] for c in search.candidates().values()]
    assert all(c["outcome"] == "Succeeded" for c in candidates)
    steps = search.status()["steps"].values()
    return sum(s.get("failures", 0) + s.get("disruptions", 0) for s in (*candidates, *steps))


def _container_started(search: Search) -> datetime:
    """When the first worker container of a search was started, by the kubelet's Event."""
    events = search.cluster.get("events", f"--namespace={search.namespace}", "--field-selector=reason=Started")
    times = [e["firstTimestamp"] for e in events["items"] if e["involvedObject"]["name"].startswith(search.name)]
    return datetime.fromisoformat(min(times))


def _shared_volume(cluster: Cluster, namespace: str, folder: Path) -> str:
    """A claim on a folder of this machine that all pods of the namespace may mount; its name."""
    folder.mkdir()
    folder.chmod(0o777)
    size, modes = {"storage": "1Gi"}, ["ReadWriteMany"]
    volume = {"capacity": size, "accessModes": modes, "storageClassName": "", "hostPath": {"path": str(folder)}}
    claim = {"accessModes": modes, "storageClassName": "", "resources": {"requests": size}, "volumeName": namespace}
    cluster.apply(
        [
            {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": namespace}, "spec": volume},
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": "cache", "namespace": namespace},
                "spec": claim,
            },
        ]
    )
    return "cache"
