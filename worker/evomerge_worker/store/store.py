"""One door to all kinds of storage."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge_contract.manifest import Storage
from evomerge_contract.task import Source
from evomerge_worker.durable import write_durably
from evomerge_worker.errors import InputError, StorageError
from evomerge_worker.store import files

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class Store:
    """Brings what a URI names to this machine, and small results away from it.

    `cache` is the folder that downloads are kept in; any number of processes may share it, and what this process has
    pulled stays there until it ends. With `trust_remote_code` the Python files of a model are brought along too, else
    never.
    """

    has_weights = True
    """Whether models come with their weights, and not their headers alone."""

    def __init__(self, storage: Storage, cache: Path, *, trust_remote_code: bool = False) -> None:
        self.storage = storage
        self.cache = cache
        self.trust_remote_code = trust_remote_code

    def model(self, uri: str, *, where: str = "uri") -> Path:
        """The local folder of a model: config, safetensors, tokenizer. Nobody may write into it.

        `where` is the path that problems are reported at.

        Raises:
            InputError: the URI is wrong, or what is there is no model.
            StorageError: nothing is there, the credentials do not open it, the server or the disk failed.
        """
        return self._model(uri, where, adapter=False)

    def adapter(self, uri: str, *, where: str = "uri") -> Path:
        """The local folder of an adapter: its config and weights. Errors as `model` raises them."""
        return self._model(uri, where, adapter=True)

    def _model(self, uri: str, where: str, *, adapter: bool) -> Path:
        code = self.trust_remote_code
        match scheme_of(uri, where):
            case "file":
                return files.model_folder(uri, where, adapter=adapter)
            case "s3":
                from evomerge_worker.store import s3_source

                return s3_source.fetch_model(self.s3, uri, where, self.cache, code=code, adapter=adapter)
            case _:
                from evomerge_worker.store import hub

                return hub.fetch_model(uri, where, self.cache, code=code, adapter=adapter)

    def file(self, uri: str, *, where: str = "uri") -> Path:
        """The local path of a single file, a data set for one. Errors as `model` raises them."""
        match scheme_of(uri, where):
            case "file":
                return files.single_file(uri, where)
            case "s3":
                from evomerge_worker.store import s3_source

                return s3_source.fetch_file(self.s3, uri, where, self.cache)
            case _:
                raise InputError.at(where, f"{uri}: hf:// names models only; give data as file:// or s3://")

    def read(self, uri: str, *, where: str = "uri") -> bytes | None:
        """The content of a small file, never from the cache; None where there is none.

        Raises:
            StorageError: whether there is one cannot be told.
        """
        if scheme_of(uri, where) == "s3":
            from evomerge_worker.store import s3_object

            return s3_object.read(self.s3, uri, where)
        try:
            return files.path_of(uri, where).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError.at(where, f"{uri} could not be read: {error.strerror}") from error

    def write(self, uri: str, content: bytes, *, where: str = "uri") -> None:
        """Write a small file, so that it is there whole, or as it was before.

        Raises:
            StorageError: it cannot be written.
        """
        if scheme_of(uri, where) == "s3":
            from evomerge_worker.store import s3_object

            s3_object.write(self.s3, uri, content, where)
        else:
            write_durably(files.path_of(uri, where), content)

    @cached_property
    def s3(self) -> "S3Client":
        """The S3 client of these settings."""
        from evomerge_worker.store import s3

        return s3.connect(self.storage.s3)


def with_commits(source: Source, where: str) -> Source:
    """The source with the commits that models of the hub have now, where it names none.

    Raises:
        InputError: the hub has no such model or branch, or may not be asked.
        StorageError: it does not answer, or refuses.
    """
    uris = {"uri": source.uri, "adapter": source.adapter}
    named = {key: uri for key, uri in uris.items() if uri is not None and uri.startswith("hf:")}
    if not named:
        return source
    from evomerge_worker.store import hub

    return source.model_copy(update={key: hub.with_commit(uri, where) for key, uri in named.items()})


def scheme_of(uri: str, where: str) -> str:
    """`file`, `s3` or `hf`.

    Raises:
        InputError: it is something else.
    """
    scheme = uri.partition(":")[0]
    if scheme not in ("file", "s3", "hf"):
        raise InputError.at(
            where,
            f"{uri} is no place that is known: write file:///folder, s3://bucket/prefix or hf://org/name@commit",
        )
    return scheme
