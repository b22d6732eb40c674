"""Models at `s3://` as far as a first look needs them: the small files whole, and of the weights the headers alone.

A shard comes as its header, with a hole of the size of its tensors behind it: it opens as the whole one does, and takes
neither time nor room.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from evomerge_worker.store.pull import Location
from evomerge_worker.store.s3 import CONNECTIONS, Object, S3Client, explained
from evomerge_worker.store.s3_source import needed_of
from evomerge_worker.store.store import Store, scheme_of
from evomerge_worker.store.wanted import deciding

_FIRST_BYTES = 1 << 20
"""Most headers fit."""
_MOST_BYTES = 100_000_000
"""No safetensors header may be longer."""


class Outline(Store):
    """A store whose models at `s3://` are outlines in `folder`; all else is that of `store`."""

    has_weights = False

    def __init__(self, store: Store, folder: Path) -> None:
        super().__init__(store.storage, store.cache, trust_remote_code=store.trust_remote_code)
        self._folder = folder

    def model(self, uri: str, *, where: str = "uri") -> Path:
        """The local folder of a model's outline. Errors as `Store.model` raises them."""
        if scheme_of(uri, where) != "s3":
            return super().model(uri, where=where)
        location, needed = needed_of(self.s3, uri, where, code=self.trust_remote_code)
        needed = {name: needed[name] for name in deciding(needed, code=self.trust_remote_code)}
        into = self._folder / f"{len(list(self._folder.iterdir()))}"
        into.mkdir()
        with explained(uri, where, self.s3):
            _draw(self.s3, location, needed, into)
        return into


def _draw(client: S3Client, location: Location, objects: Mapping[str, Object], into: Path) -> None:
    def draw(name: str) -> None:
        found = objects[name]
        size = _FIRST_BYTES if name.endswith(".safetensors") else found.size
        content = _read(client, location, name, found, min(size, found.size))
        header = 8 + int.from_bytes(content[:8], "little")
        if name.endswith(".safetensors") and len(content) < header <= min(found.size, _MOST_BYTES):
            content = _read(client, location, name, found, header)
        (into / name).write_bytes(content)
        os.truncate(into / name, found.size)

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(draw, objects))


def _read(client: S3Client, location: Location, name: str, found: Object, size: int) -> bytes:
    """The first `size` bytes of an object."""
    if not size:
        return b""
    answer = client.get_object(
        Bucket=location.bucket, Key=location.prefix + name, IfMatch=found.etag, Range=f"bytes=0-{size - 1}"
    )
    return answer["Body"].read()
