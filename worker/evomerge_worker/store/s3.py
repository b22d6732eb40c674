"""`s3://bucket/prefix` by boto3: a model is the objects right under the prefix, cached by their ETags and sizes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoCredentialsError,
)
from botocore.exceptions import ConnectionError as NoConnection

from evomerge_contract.base import digest_of
from evomerge_contract.manifest import S3
from evomerge_worker.errors import InputError, StorageError, WorkerError
from evomerge_worker.store.cache import cached_folder
from evomerge_worker.store.wanted import check_listing, wanted

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
else:
    S3Client = object

_SETTINGS = "spec.storage.s3"

_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"}
_DENIED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled"}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "301", "307"}
_PASSING = {"ExpiredToken", "RequestTimeout", "RequestTimeTooSkewed", "SlowDown", "TooManyRequests", "Throttling"}
_WEATHER = (HTTPClientError, IncompleteReadError, CredentialRetrievalError, MetadataRetrievalError)


class _Object(NamedTuple):
    etag: str
    size: int


_Listing = dict[str, _Object]


def connect(settings: S3) -> S3Client:
    """A client; endpoint and region that `settings` leave out, and the credentials, are the ambient AWS settings.

    Raises:
        InputError: no client can be made of the settings.
    """
    config = Config(
        s3={"addressing_style": "path" if settings.path_style else "auto"},
        retries={"mode": "standard", "total_max_attempts": 4},
        connect_timeout=10,
        read_timeout=60,
    )
    try:
        return boto3.session.Session().client(
            "s3", endpoint_url=settings.endpoint, region_name=settings.region, config=config
        )
    except (BotoCoreError, ValueError) as error:
        raise InputError.at(_SETTINGS, f"no S3 client can be made of these settings: {error}") from error


def fetch_model(client: S3Client, uri: str, where: str, cache: Path, *, code: bool) -> Path:
    """The cached copy of the model under `uri`; one LIST where it is there already."""
    bucket, key = _split(uri, where)
    prefix = f"{key.rstrip('/')}/" if key else ""

    def look() -> _Listing:
        found = _under(client, bucket, prefix)
        try:
            check_listing(uri, where, found)
        except InputError:
            check_listing(uri, where, _deeper(client, bucket, prefix))  # what lies in subfolders says more
            raise
        return {name: found[name] for name in wanted(found, code=code)}

    with _explained(uri, where, client):
        return _cached(client, uri, bucket, prefix, look, cache)


def fetch_file(client: S3Client, uri: str, where: str, cache: Path) -> Path:
    """The cached copy of the object `uri`; one LIST where it is there already."""
    bucket, key = _split(uri, where)
    if not key or key.endswith("/"):
        raise InputError.at(where, f"{uri} names no file: write s3://bucket/path/to/file")
    folder, slash, name = key.rpartition("/")

    def look() -> _Listing:
        found = _under(client, bucket, key, first=True)
        if "" not in found:
            raise InputError.at(where, f"{uri} does not exist")
        return {name: found[""]}

    with _explained(uri, where, client):
        return _cached(client, uri, bucket, folder + slash, look, cache) / name


def _split(uri: str, where: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3:").removeprefix("//").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise InputError.at(where, f"{uri} names no bucket: write s3://bucket/prefix")
    return bucket, key


def _under(client: S3Client, bucket: str, prefix: str, *, first: bool = False) -> _Listing:
    """The objects right under a prefix, or the first of them, by what follows the prefix."""
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=prefix, Delimiter="/", PaginationConfig={"MaxItems": 1, "PageSize": 1} if first else {}
    )
    objects = (o for page in pages for o in page.get("Contents", ()))
    return {o["Key"].removeprefix(prefix): _Object(o["ETag"], o["Size"]) for o in objects if o["Key"][-1] != "/"}


def _deeper(client: S3Client, bucket: str, prefix: str) -> list[str]:
    """The first thousand keys under a prefix and in its subfolders."""
    found = client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", ())
    return [o["Key"].removeprefix(prefix) for o in found]


def _cached(client: S3Client, uri: str, bucket: str, prefix: str, look: Callable[[], _Listing], cache: Path) -> Path:
    """The cached folder of the objects that `look` lists; a second look shows that none changed under the download."""
    listing = look()

    def fill(folder: Path) -> None:
        for name in listing:
            client.download_file(bucket, prefix + name, str(folder / name))
        if look() != listing:
            raise StorageError(f"{uri} changed while it was read; try again")

    key = digest_of({"uri": uri, "objects": listing}).removeprefix("sha256:")
    return cached_folder(cache, key, {name: found.size for name, found in listing.items()}, fill)


@contextmanager
def _explained(uri: str, where: str, client: S3Client) -> Iterator[None]:
    """Every error of boto3 as one of ours, in a sentence."""
    server = client.meta.endpoint_url
    try:
        yield
    except ClientError as error:
        raise _answer(error, uri, where, server) from error
    except NoCredentialsError as error:
        advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        raise InputError.at(where, f"{uri} cannot be read without S3 credentials: {advice}") from error
    except NoConnection as error:
        advice = f"is {_SETTINGS}.endpoint right, and the server up?"
        raise StorageError(f"{uri} could not be read: {server} cannot be reached; {advice}") from error
    except (*_WEATHER, Boto3Error) as error:
        raise StorageError(f"{uri} could not be read from {server}: {error}") from error
    except BotoCoreError as error:
        raise InputError.at(where, f"{uri} cannot be read: {error}") from error


def _answer(error: ClientError, uri: str, where: str, server: str) -> WorkerError:
    """What the server's refusal means."""
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status >= 500 or status == 429 or code in _PASSING:
        return StorageError(f"{uri} could not be read: {server} answered {code or status}")
    bucket = _split(uri, where)[0]
    if code == "NoSuchBucket":
        reason = f"there is no bucket {bucket} at {server}"
    elif code in _REFUSED:
        reason = f"{server} refuses the S3 credentials ({code})"
    elif code in _DENIED:
        reason = f"the S3 credentials may not list and read it ({code})"
    elif code in _MISSING:
        reason = f"it does not exist at {server}"
    elif code in _ELSEWHERE:
        reason = f"bucket {bucket} is in another region; set {_SETTINGS}.region"
    else:
        reason = f"{server} answered {error}"
    return InputError.at(where, f"{uri} cannot be read: {reason}")
