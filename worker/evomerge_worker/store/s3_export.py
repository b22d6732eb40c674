"""An export at `s3://`: files that count once `.evomerge`, written last, tells them all.

The order keeps every moment recognisable. `.evomerge.partial` is written first: it names all that may lie there from
now on, of this export and of the one it replaces. Then an earlier `.evomerge` goes, the files are put, those that the
new export does not have go, what arrived is compared, `.evomerge` is written, and `.evomerge.partial` goes. Whoever
finds only the latter finds an export that was broken off, and may replace it. Nothing else is ever removed.
"""

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from botocore.exceptions import ClientError
from pydantic import Field, ValidationError

from evomerge_contract.base import Contract, Digest
from evomerge_contract.report import EXPORT_MARK
from evomerge_worker.digests import file_digest
from evomerge_worker.errors import InputError, StorageError
from evomerge_worker.store.s3 import DENIED, Object, S3Client, explained, listing, split_prefix
from evomerge_worker.store.upload import put_bytes, put_file

BEGUN = f"{EXPORT_MARK}.partial"
REPORTS = "reports/"
"""Under an export's prefix, but no part of it."""
_WHERE = "export"
_SHOWN = 3


class ExportedFile(Contract):
    """A file of an export; size in bytes."""

    size: int = Field(ge=0)
    sha256: Digest


class ExportManifest(Contract):
    """`.evomerge`: the task that wrote the export, and every file of it but this one."""

    task: Digest
    files: dict[str, ExportedFile]


class ExportBegun(Contract):
    """`.evomerge.partial`: the task that is writing, and every file that may lie there."""

    task: Digest
    files: list[str]


def earlier_export(client: S3Client, uri: str, task: str) -> dict[str, str] | None:
    """The files of the complete export of the same task, with their digests; None if there is none.

    Raises:
        InputError: the prefix holds objects that no export wrote.
        StorageError: it cannot be told.
    """
    bucket, prefix = split_prefix(uri, _WHERE)
    with explained(uri, _WHERE, client):
        found, manifest, _ = _look(client, uri)
        if manifest is None or manifest.task != task:
            return None
        if any(name not in found or found[name].size != file.size for name, file in manifest.files.items()):
            return None
        _delete(client, bucket, [prefix + BEGUN] if BEGUN in found else [])  # a kill came between the last two steps
        return {name: file.sha256 for name, file in manifest.files.items()}


def put_export(client: S3Client, uri: str, task: str, folder: Path) -> dict[str, str]:
    """Put the files of `folder` to the prefix `uri`, in place of an earlier export; their digests.

    Raises:
        InputError: the prefix holds objects that no export wrote.
        StorageError: the server failed or refused, or what arrived is not what was sent.
    """
    bucket, prefix = split_prefix(uri, _WHERE)
    paths = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    files = {name: path for name, path in paths.items() if name != EXPORT_MARK}
    with explained(uri, _WHERE, client, "written"):
        found, _, ours = _look(client, uri)
        stale = (found.keys() & ours) - files.keys()
        begun = ExportBegun(task=task, files=sorted(stale | files.keys()))
        put_bytes(client, bucket, prefix + BEGUN, _text(begun))
        _delete(client, bucket, [prefix + EXPORT_MARK] if EXPORT_MARK in found else [])
        _abort_uploads(client, bucket, prefix, {prefix + name for name in ours | files.keys()})
        with ThreadPoolExecutor(1) as beside:
            digests = beside.map(file_digest, files.values())
            put = {name: put_file(client, bucket, prefix + name, path) for name, path in files.items()}
            sha256 = dict(zip(files, digests, strict=True))
        _delete(client, bucket, [prefix + name for name in sorted(stale)])
        _compare(listing(client, bucket, prefix, deep=True), put, uri)
        done = {name: ExportedFile(size=put[name].size, sha256=sha256[name]) for name in files}
        put_bytes(client, bucket, prefix + EXPORT_MARK, _text(ExportManifest(task=task, files=done)))
        _delete(client, bucket, [prefix + BEGUN])
    return sha256


def drop_export(client: S3Client, uri: str) -> None:
    """Delete the export at the prefix `uri`, if there is one; its marks last, so that a broken-off deletion goes on.

    Raises:
        InputError: the prefix holds objects that no export wrote.
        StorageError: the server failed or refused.
    """
    bucket, prefix = split_prefix(uri, _WHERE)
    with explained(uri, _WHERE, client, "written"):
        found, _, ours = _look(client, uri)
        marks = [name for name in (EXPORT_MARK, BEGUN) if name in found]
        _delete(client, bucket, [prefix + name for name in [*sorted(found.keys() & ours - set(marks)), *marks]])


def _look(client: S3Client, uri: str) -> tuple[dict[str, Object], ExportManifest | None, set[str]]:
    """What lies under the prefix, the complete export's manifest, and the names of all files that exports wrote.

    Raises:
        InputError: there is something else.
    """
    bucket, prefix = split_prefix(uri, _WHERE)
    found = {n: o for n, o in listing(client, bucket, prefix, deep=True).items() if not n.startswith(REPORTS)}
    manifest = _read(client, bucket, prefix, EXPORT_MARK, ExportManifest) if EXPORT_MARK in found else None
    begun = _read(client, bucket, prefix, BEGUN, ExportBegun) if BEGUN in found else None
    ours = {*(manifest.files if manifest else ()), *(begun.files if begun else ())}
    marks = {name for name, mark in ((EXPORT_MARK, manifest), (BEGUN, begun)) if mark is not None}
    if foreign := sorted(found.keys() - ours - marks):
        shown = ", ".join(foreign[:_SHOWN])
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        advice = "name a prefix that is empty, or take them away"
        raise InputError.at(_WHERE, f"{uri} holds objects that no export wrote ({shown}{more}); {advice}")
    return found, manifest, ours


_Mark = TypeVar("_Mark", ExportManifest, ExportBegun)


def _read(client: S3Client, bucket: str, prefix: str, name: str, kind: type[_Mark]) -> _Mark | None:
    """The mark `name`; None when it is none of ours."""
    content = client.get_object(Bucket=bucket, Key=prefix + name)["Body"].read()
    try:
        return kind.model_validate_json(content)
    except ValidationError:
        return None


def _abort_uploads(client: S3Client, bucket: str, prefix: str, keys: Collection[str]) -> None:
    """End uploads to `keys` that were broken off: their parts are paid for until somebody does."""
    try:
        pages = list(client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix))
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in DENIED:
            return  # a right of its own that writers often lack; the bucket's lifecycle rules see to it then
        raise
    for upload in [u for page in pages for u in page.get("Uploads", ()) if u["Key"] in keys]:
        client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])


def _compare(found: dict[str, Object], put: dict[str, Object], uri: str) -> None:
    """Whether the server now shows what it said it took.

    Raises:
        StorageError: it does not.
    """
    if wrong := [name for name, sent in put.items() if found.get(name) != sent]:
        message = f"{uri}/{wrong[0]} is not what was written there; does something else write to this prefix?"
        raise StorageError.at(_WHERE, message)


def _delete(client: S3Client, bucket: str, keys: Iterable[str]) -> None:
    """Delete objects, one by one: a server's answer to deleting many at once hides the refusals."""
    for key in keys:
        client.delete_object(Bucket=bucket, Key=key)


def _text(mark: Contract) -> bytes:
    return (mark.model_dump_json(indent=1) + "\n").encode()
