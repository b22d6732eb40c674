"""`hf://org/name@commit`: a model of the Hugging Face hub, pinned to one commit; found out where it is not named."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from glob import escape
from pathlib import Path

from huggingface_hub import HfApi, constants, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # httpx's own: the root of what a connection can raise
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from evomerge_contract.base import digest_of
from evomerge_worker.errors import InputError, StorageError
from evomerge_worker.store.cache import Arrived, cached_folder
from evomerge_worker.store.wanted import check_listing, wanted

_URI = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<commit>.*))?")
_VERSION = 2  # of what is wanted of a model: another number is another key in the cache
_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch_model(uri: str, where: str, cache: Path, *, code: bool, adapter: bool) -> Path:
    """The cached copy of the model, or of the `adapter`; without any request where it is there already.

    A token for private and gated models is taken from the ambient settings (HF_TOKEN).
    """
    repo, commit = _split(uri, where)

    @lru_cache(1)
    def listed() -> dict[str, int]:
        """The files that are needed, with their sizes in bytes."""
        with _explained(uri, where):
            tree = HfApi().list_repo_tree(repo, revision=commit, recursive=True)
            sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
        check_listing(uri, where, sizes, adapter=adapter)
        return {name: sizes[name] for name in wanted(sizes, code=code, adapter=adapter)}

    def fill(part: Path, _: Arrived) -> None:
        names = [escape(name) for name in listed()]
        with _explained(uri, where):
            snapshot_download(repo, revision=commit, local_dir=part, allow_patterns=names)
        if torn := [name for name, size in listed().items() if (part / name).stat().st_size != size]:
            raise StorageError.at(where, f"{uri}: {torn[0]} did not come whole; try again")

    kind: dict[str, object] = {"adapter": True} if adapter else {"code": code}
    key = digest_of(
        {"hub": constants.ENDPOINT, "repo": repo, "commit": commit, "version": _VERSION} | kind
    ).removeprefix("sha256:")
    return cached_folder(cache, key, lambda: sum(listed().values()), fill)


def with_commit(uri: str, where: str) -> str:
    """`uri` with the commit that its branch or tag, or the model's main branch, is at now.

    Raises:
        InputError: the hub has no such model or branch; it may not be asked.
        StorageError: it does not answer, or refuses.
    """
    parts = _parts(uri, where)
    if _COMMIT.fullmatch(parts["commit"] or ""):
        return uri
    if is_offline_mode():
        message = f"{uri} names no commit, and HF_HUB_OFFLINE forbids to ask for it; write hf://{parts['repo']}@commit"
        raise InputError.at(where, message)
    with _explained(uri, where):
        commit = HfApi().model_info(parts["repo"], revision=parts["commit"]).sha
    return f"hf://{parts['repo']}@{commit}"


def _parts(uri: str, where: str) -> re.Match[str]:
    parts = _URI.fullmatch(uri)
    if parts is None:
        raise InputError.at(where, f"{uri} names no model of the hub: write hf://org/name@commit")
    return parts


def _split(uri: str, where: str) -> tuple[str, str]:
    parts = _parts(uri, where)
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
        raise StorageError.at(where, f"{uri} is gated: accept its terms at the hub and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise InputError.at(where, f"{uri}: the model has no such commit, branch or tag") from error
    except RepositoryNotFoundError as error:
        advice = "check the name, or set HF_TOKEN to a token that may read it"
        raise StorageError.at(where, f"{uri} does not exist, or is private: {advice}") from error
    except OfflineModeIsEnabled as error:
        raise StorageError.at(where, f"{uri} is not in the cache, and HF_HUB_OFFLINE forbids to get it") from error
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            message = f"{uri} may not be read with this HF_TOKEN: {_first_line(error)}"
            raise StorageError.at(where, message) from error
        raise _unreachable(uri, where, error) from error
    except LocalEntryNotFoundError as error:  # snapshot_download's word for a hub that went away
        raise _unreachable(uri, where, error.__cause__ or error) from error
    except (HTTPError, ConnectionError) as error:
        raise _unreachable(uri, where, error) from error


def _unreachable(uri: str, where: str, error: BaseException) -> StorageError:
    return StorageError.at(where, f"{uri} could not be read from {constants.ENDPOINT}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
