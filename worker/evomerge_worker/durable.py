"""Writing a file so that it is there whole, or not at all, after any crash."""

import os
import secrets
from pathlib import Path

from evomerge_worker.errors import StorageError

READABLE = 0o644
"""The mode of what we write, less the umask: tools of other users may read it."""


def write_durably(path: Path, content: bytes) -> None:
    """Write `content` to `path` by way of a temporary sibling, synced before it is renamed.

    Raises:
        StorageError: the disk is full or failed, or the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, READABLE), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
