"""Models and data at `s3://`: what is needed of them is listed, then pulled into the cache or found there.

A cache entry is named by server, URI, and name, ETag and size of every object: what changes there has another name.
"""

from pathlib import Path

from evomerge_contract.base import digest_of
from evomerge_contract.problems import in_words
from evomerge_worker.errors import InputError, StorageError
from evomerge_worker.store.cache import Arrived, cached_folder
from evomerge_worker.store.companions import is_left
from evomerge_worker.store.pull import Location, pull
from evomerge_worker.store.s3 import Object, S3Client, explained, listing, single, split, split_prefix, tree
from evomerge_worker.store.wanted import LackingError, check_listing, wanted

_PUT_IT_THERE = "put it there, or name the right place in a new run"


def fetch_model(client: S3Client, uri: str, where: str, cache: Path, *, code: bool, adapter: bool = False) -> Path:
    """The cached copy of the model, or the `adapter`, under `uri`; a LIST a folder where it is there already."""
    location, needed = needed_of(client, uri, where, code=code, adapter=adapter)
    with explained(uri, where, client):
        return _cached(client, uri, needed, location, cache)


def needed_of(
    client: S3Client, uri: str, where: str, *, code: bool, adapter: bool = False
) -> tuple[Location, dict[str, Object]]:
    """Where the model, or the `adapter`, under `uri` lies, and the objects that are needed of it.

    Raises:
        InputError: what is there is none.
        StorageError: nothing is there, or the server failed or refused.
    """
    bucket, prefix = split_prefix(uri, where)
    with explained(uri, where, client):
        found = listing(client, bucket, prefix) if adapter else tree(client, bucket, prefix, is_left)
        try:
            check_listing(uri, where, found, adapter=adapter)
        except LackingError:
            try:
                deep = listing(client, bucket, prefix, deep=True)  # subfolders say more
                check_listing(uri, where, deep, adapter=adapter)
            except LackingError as error:
                raise _awaited(error) from error
    return Location(bucket, prefix, where), {name: found[name] for name in wanted(found, code=code, adapter=adapter)}


def fetch_file(client: S3Client, uri: str, where: str, cache: Path) -> Path:
    """The cached copy of the object `uri`; one LIST where it is there already."""
    bucket, key = split(uri, where)
    if not key or key.endswith("/"):
        raise InputError.at(where, f"{uri} names no file: write s3://bucket/path/to/file")
    folder, slash, name = key.rpartition("/")
    with explained(uri, where, client):
        found = single(client, bucket, key)
        if found is None:
            raise StorageError.at(where, f"{uri} does not exist at {client.meta.endpoint_url}; {_PUT_IT_THERE}")
        return _cached(client, uri, {name: found}, Location(bucket, folder + slash, where), cache) / name


def _awaited(lacking: LackingError) -> StorageError:
    """Files that are missing on a server may be put there."""
    problems = [p.model_copy(update={"message": f"{p.message}; {_PUT_IT_THERE}"}) for p in lacking.problems]
    return StorageError(in_words(problems), *problems)


def _cached(client: S3Client, uri: str, objects: dict[str, Object], location: Location, cache: Path) -> Path:
    identity = {"server": client.meta.endpoint_url, "uri": uri, "objects": objects}
    key = digest_of(identity).removeprefix("sha256:")

    def fill(part: Path, arrived: Arrived) -> None:
        pull(client, location, objects, part, arrived)

    return cached_folder(cache, key, lambda: sum(found.size for found in objects.values()), fill)
