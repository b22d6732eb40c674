"""`hf://org/name@commit`: a model of the Hugging Face hub, pinned to one commit."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # httpx's own: the root of what a connection can raise
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from evomerge_worker.errors import InputError, StorageError
from evomerge_worker.store.wanted import CODE, UNWANTED, WANTED, check_listing

_URI = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<commit>.*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SUBFOLDERS = "*/*"


def fetch_model(uri: str, where: str, cache: Path, *, code: bool) -> Path:
    """The local snapshot of the model; without any request where it is there already.

    A token for private and gated models is taken from the ambient settings (HF_TOKEN).
    """
    repo, commit = _split(uri, where)
    with _explained(uri, where):
        folder = Path(
            snapshot_download(
                repo,
                revision=commit,
                cache_dir=cache,
                allow_patterns=list(WANTED + CODE if code else WANTED),
                ignore_patterns=[*UNWANTED, _SUBFOLDERS],
            )
        )
        try:
            check_listing(uri, where, [p.name for p in folder.iterdir()] if folder.exists() else [])
        except InputError:
            check_listing(uri, where, HfApi().list_repo_files(repo, revision=commit))  # what was left out says more
            raise
    return folder


def _split(uri: str, where: str) -> tuple[str, str]:
    parts = _URI.fullmatch(uri)
    if parts is None:
        raise InputError.at(where, f"{uri} names no model of the hub: write hf://org/name@commit")
    commit = parts["commit"] or ""
    if not _COMMIT.fullmatch(commit):
        reason = f"{commit!r} is not a full commit" if commit else "it names no commit"
        raise InputError.at(
            where,
            f"{uri} is not pinned: {reason}, so what it means can change; write hf://{parts['repo']}@ and all 40 "
            "digits of the commit",
        )
    return parts["repo"], commit


@contextmanager
def _explained(uri: str, where: str) -> Iterator[None]:
    """Every error of the hub's client as one of ours, in a sentence."""
    try:
        yield
    except GatedRepoError as error:
        raise InputError.at(where, f"{uri} is gated: accept its terms at the hub and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise InputError.at(where, f"{uri}: the model has no such commit") from error
    except RepositoryNotFoundError as error:
        raise InputError.at(
            where, f"{uri} does not exist, or is private: check the name, or set HF_TOKEN to a token that may read it"
        ) from error
    except LocalEntryNotFoundError as error:
        if constants.is_offline_mode():
            raise InputError.at(where, f"{uri} is not in the cache, and HF_HUB_OFFLINE forbids to get it") from error
        raise _unreachable(uri, error.__cause__ or error) from error
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise InputError.at(where, f"{uri} may not be read with this HF_TOKEN: {_first_line(error)}") from error
        raise _unreachable(uri, error) from error
    except (HTTPError, ConnectionError) as error:
        raise _unreachable(uri, error) from error
    except OSError as error:
        raise StorageError(f"{uri} could not be written to the cache: {error}") from error


def _unreachable(uri: str, error: BaseException) -> StorageError:
    return StorageError(f"{uri} could not be read from {constants.ENDPOINT}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
