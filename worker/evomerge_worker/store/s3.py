"""`s3://bucket/prefix` by boto3: the client, what lies where, and every error in a sentence."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    SSLError,
)
from botocore.exceptions import ConnectionError as NoConnection

from evomerge_contract.manifest import S3
from evomerge_worker.errors import InputError, StorageError, WorkerError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client as S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef
else:
    S3Client = object

_SETTINGS = "spec.storage.s3"
CONNECTIONS = min(32, 4 * len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 16)
"""Side by side: more than cores can serve slow one another."""
_ADDRESSING: dict[bool | None, Literal["path", "virtual", "auto"]] = {True: "path", False: "virtual", None: "auto"}
_CONNECT_SECONDS = 5
_READ_SECONDS = 7
_ATTEMPTS = 3
"""A server that does not answer is given up after about 20 s; what waits for it then asks again later."""

_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken"}
DENIED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled"}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "301", "307", "IllegalLocationConstraintException"}
_CHANGED = {"PreconditionFailed", "412"}
Doing = Literal["read", "written"]


class Object(NamedTuple):
    """An object as a listing shows it; size in bytes."""

    etag: str
    size: int


def connect(settings: S3) -> S3Client:
    """A client; endpoint, region and authorities that `settings` leave out, and the credentials, are the ambient ones.

    Raises:
        InputError: no client can be made of the settings.
        StorageError: the ambient credentials or settings are incomplete.
    """
    config = Config(
        s3={"addressing_style": _ADDRESSING[settings.path_style]},
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        max_pool_connections=CONNECTIONS,
    )
    try:
        return boto3.session.Session().client(
            "s3", endpoint_url=settings.endpoint, region_name=settings.region, config=config
        )
    except ValueError as error:
        raise InputError.at(_SETTINGS, f"no S3 client can be made of these settings: {error}") from error
    except BotoCoreError as error:
        raise StorageError.at(_SETTINGS, f"no S3 client can be made here: {error}") from error


def split(uri: str, where: str) -> tuple[str, str]:
    """Bucket and key of a URI.

    Raises:
        InputError: it names no bucket.
    """
    bucket, _, key = uri.removeprefix("s3:").removeprefix("//").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise InputError.at(where, f"{uri} names no bucket: write s3://bucket/prefix")
    return bucket, key


def split_prefix(uri: str, where: str) -> tuple[str, str]:
    """Bucket and prefix of a URI that names a folder; the prefix is empty or ends in a slash."""
    bucket, key = split(uri, where)
    return bucket, f"{key.rstrip('/')}/" if key else ""


def listing(client: S3Client, bucket: str, prefix: str, *, deep: bool = False) -> dict[str, Object]:
    """The objects right under a prefix, with `deep` those in its subfolders too, by what follows the prefix."""
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=prefix, Delimiter="" if deep else "/"
    )
    return _objects(pages, prefix)


def tree(client: S3Client, bucket: str, prefix: str, skip: Callable[[str], bool]) -> dict[str, Object]:
    """The objects under a prefix by what follows it, but for those in the folders right below it that `skip` names."""
    pages = list(client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/"))
    found = _objects(pages, prefix)
    folders = [p["Prefix"].removeprefix(prefix) for page in pages for p in page.get("CommonPrefixes", ())]
    for folder in (folder for folder in folders if not skip(folder.rstrip("/"))):
        below = listing(client, bucket, prefix + folder, deep=True)
        found |= {folder + name: held for name, held in below.items()}
    return found


def single(client: S3Client, bucket: str, key: str) -> Object | None:
    """One object; None where it is missing."""
    found = client.list_objects_v2(Bucket=bucket, Prefix=key, Delimiter="/", MaxKeys=1).get("Contents", ())
    return next((Object(o["ETag"], o["Size"]) for o in found if o["Key"] == key), None)


def _objects(pages: "Iterable[ListObjectsV2OutputTypeDef]", prefix: str) -> dict[str, Object]:
    objects = (o for page in pages for o in page.get("Contents", ()))
    return {o["Key"].removeprefix(prefix): Object(o["ETag"], o["Size"]) for o in objects if o["Key"][-1] != "/"}


@contextmanager
def explained(uri: str, where: str, client: S3Client, doing: Doing = "read") -> Iterator[None]:
    """Every error of boto3 as one of ours, in a sentence, at the path `where`."""
    server = client.meta.endpoint_url
    try:
        yield
    except ClientError as error:
        raise _answer(error, uri, where, server, doing) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; on a cluster, the Secret's keys"
        raise StorageError.at(where, f"{uri} cannot be {doing} without S3 credentials: {advice}") from error
    except SSLError as error:
        advice = f"set {_SETTINGS}.caConfigMap, or AWS_CA_BUNDLE on one machine, if the authority is your own"
        raise StorageError.at(where, f"{uri} could not be {doing}: no trusted TLS with {server}: {advice}") from error
    except NoConnection as error:
        advice = f"is {_SETTINGS}.endpoint right, and the server up?"
        raise StorageError.at(where, f"{uri} could not be {doing}: {server} cannot be reached; {advice}") from error
    except ParamValidationError as error:
        raise InputError.at(where, f"{uri} cannot be {doing}: {error}") from error
    except (BotoCoreError, Boto3Error) as error:
        raise StorageError.at(where, f"{uri} could not be {doing} at {server}: {error}") from error


def _answer(error: ClientError, uri: str, where: str, server: str, doing: Doing) -> WorkerError:
    """What the server's refusal means."""
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    bucket = split(uri, where)[0]
    if code == "InvalidBucketName":
        return InputError.at(where, f"{uri} cannot be {doing}: {bucket} is no name that a bucket can have")
    if code == "NoSuchBucket":
        reason = f"there is no bucket {bucket} at {server}; make it, or name the right one in a new run"
    elif code in _REFUSED:
        secret = f"on a cluster, in the Secret of {_SETTINGS}.secretName"
        reason = f"{server} refuses the S3 credentials ({code}); mend them: {secret}"
    elif code in DENIED:
        allowed = "list and read" if doing == "read" else "list, read and write"
        reason = f"the S3 credentials may not {allowed} it ({code}); give them that right, or use others"
    elif code in _MISSING:
        reason = f"it does not exist at {server}"
    elif code in _ELSEWHERE:
        reason = f"bucket {bucket} is in another region; set {_SETTINGS}.region"
    elif code in _CHANGED:
        reason = "it changed meanwhile; try again"
    else:
        reason = f"{server} answered {code or status}"
    return StorageError.at(where, f"{uri} cannot be {doing}: {reason}")
