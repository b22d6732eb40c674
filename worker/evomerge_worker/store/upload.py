"""Putting files to S3 with checksums: what the server took is what we sent, or it refuses."""

import hashlib
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge_worker.store.s3 import Object, S3Client

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

_PART_BYTES = 32 << 20
_MOST_PARTS = 10_000
_THREADS = 8


def put_bytes(client: S3Client, bucket: str, key: str, content: bytes) -> Object:
    """Put one object; what a listing will show of it."""
    answer = client.put_object(Bucket=bucket, Key=key, Body=content, ChecksumSHA256=_sha256(content))
    return Object(answer["ETag"], len(content))


def put_file(client: S3Client, bucket: str, key: str, path: Path) -> Object:
    """Put a file, a large one in parts, side by side; what a listing will show of it.

    When it fails, nothing of a large file stays.
    """
    size = path.stat().st_size
    if size <= _PART_BYTES:
        return put_bytes(client, bucket, key, path.read_bytes())
    upload = client.create_multipart_upload(Bucket=bucket, Key=key, ChecksumAlgorithm="SHA256")["UploadId"]
    part_bytes = max(_PART_BYTES, -(-size // _MOST_PARTS))

    def put_part(number: int) -> "CompletedPartTypeDef":
        with path.open("rb") as file:
            file.seek((number - 1) * part_bytes)
            content = file.read(part_bytes)
        checksum = _sha256(content)
        answer = client.upload_part(
            Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=content, ChecksumSHA256=checksum
        )
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}

    try:
        with ThreadPoolExecutor(_THREADS) as threads:
            parts = list(threads.map(put_part, range(1, -(-size // part_bytes) + 1)))
        answer = client.complete_multipart_upload(
            Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
        )
    except BaseException:
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
        raise
    return Object(answer["ETag"], size)


def _sha256(content: bytes) -> str:
    return b64encode(hashlib.sha256(content).digest()).decode()
