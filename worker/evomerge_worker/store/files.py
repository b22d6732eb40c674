"""`file://`: what is on this machine already."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from evomerge_worker.errors import InputError
from evomerge_worker.store.wanted import check_listing


def model_folder(uri: str, where: str, *, adapter: bool) -> Path:
    """The folder of a model, or of an `adapter`, that `uri` names, after a look at the names in it."""
    folder = path_of(uri, where)
    if folder.is_file():
        raise InputError.at(where, f"{folder} is a file; a model is a folder with config.json and *.safetensors")
    try:
        names = [p.name for p in folder.iterdir() if p.is_file()] if folder.exists() else []
        deeper = [f"{p.parent.name}/{p.name}" for p in folder.glob("*/config.json")]
    except PermissionError as error:
        raise InputError.at(where, f"{folder} may not be read ({error.strerror})") from error
    check_listing(str(folder), where, names + deeper, adapter=adapter)
    return folder


def single_file(uri: str, where: str) -> Path:
    """The file that `uri` names."""
    path = path_of(uri, where)
    if path.is_dir():
        raise InputError.at(where, f"{uri} is a folder; a file is needed")
    try:
        with path.open("rb"):
            return path
    except FileNotFoundError as error:
        raise InputError.at(where, f"{uri} does not exist") from error
    except OSError as error:
        raise InputError.at(where, f"{uri} may not be read ({error.strerror})") from error


def path_of(uri: str, where: str) -> Path:
    """The path that `uri` names.

    Raises:
        InputError: it is not absolute.
    """
    parts = urlsplit(uri)
    path = Path(unquote(parts.path))
    if parts.netloc not in ("", "localhost") or not path.is_absolute():
        raise InputError.at(where, f"{uri} is not an absolute path: write file:///folder, with three slashes")
    return path
