"""One door to all kinds of storage."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge_contract.manifest import Storage
from evomerge_worker.errors import InputError
from evomerge_worker.store import files

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class Store:
    """Brings what a URI names to this machine.

    `cache` is the folder that downloads are kept in; it may be shared by any number of processes of one machine.
    With `trust_remote_code` the Python files of a model are brought along too, else never.
    """

    def __init__(self, storage: Storage, cache: Path, *, trust_remote_code: bool = False) -> None:
        self._storage = storage
        self._cache = cache
        self._code = trust_remote_code

    def model(self, uri: str, *, where: str = "uri") -> Path:
        """The local folder of a model: config, safetensors, tokenizer. Nobody may write into it.

        `where` is the path that problems are reported at.

        Raises:
            InputError: the URI is wrong, nothing fit is there, or the credentials do not open it.
            StorageError: the server or the disk failed; trying again can help.
        """
        match _scheme(uri, where):
            case "file":
                return files.model_folder(uri, where)
            case "s3":
                from evomerge_worker.store import s3

                return s3.fetch_model(self._s3, uri, where, self._cache / "s3", code=self._code)
            case _:
                from evomerge_worker.store import hub

                return hub.fetch_model(uri, where, self._cache / "hub", code=self._code)

    def file(self, uri: str, *, where: str = "uri") -> Path:
        """The local path of a single file, a data set for one. Errors as `model` raises them."""
        match _scheme(uri, where):
            case "file":
                return files.single_file(uri, where)
            case "s3":
                from evomerge_worker.store import s3

                return s3.fetch_file(self._s3, uri, where, self._cache / "s3")
            case _:
                raise InputError.at(where, f"{uri}: hf:// names models only; give data as file:// or s3://")

    @cached_property
    def _s3(self) -> "S3Client":
        from evomerge_worker.store import s3

        return s3.connect(self._storage.s3)


def _scheme(uri: str, where: str) -> str:
    scheme = uri.partition(":")[0]
    if scheme not in ("file", "s3", "hf"):
        raise InputError.at(
            where,
            f"{uri} is no place that is known: write file:///folder, s3://bucket/prefix or hf://org/name@commit",
        )
    return scheme
