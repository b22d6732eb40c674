"""One small object at `s3://`, read and written as a whole."""

from evomerge_worker.store.s3 import S3Client, explained, split
from evomerge_worker.store.upload import put_bytes


def read(client: S3Client, uri: str, where: str) -> bytes | None:
    """The object's content; None where there is none in a bucket that is there."""
    bucket, key = split(uri, where)
    with explained(uri, where, client):
        try:
            return client.get_object(Bucket=bucket, Key=key)["Body"].read()
        except client.exceptions.NoSuchKey:
            return None


def write(client: S3Client, uri: str, content: bytes, where: str) -> None:
    """Put the object."""
    bucket, key = split(uri, where)
    with explained(uri, where, client, "written"):
        put_bytes(client, bucket, key, content)
