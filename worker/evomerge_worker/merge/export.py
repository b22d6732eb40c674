"""Writing a merged checkpoint that loads like any other: weights, config, tokenizer, generation config."""

import errno
import fcntl
import glob
import json
import math
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from evomerge_contract.recipe import Recipe
from evomerge_contract.report import EXPORT_MARK
from evomerge_worker.errors import InputError, StorageError
from evomerge_worker.merge.layers import result_config
from evomerge_worker.merge.plan import TensorPlan, anchor_of, plan_merge
from evomerge_worker.merge.run import CPU, Merger
from evomerge_worker.merge.statistics_cache import Statistics
from evomerge_worker.merge.vocabulary import Vocabularies
from evomerge_worker.shards import Checkpoint, Entry, write_checkpoint
from evomerge_worker.shards.dtypes import NAMES
from evomerge_worker.shards.writer import sync
from evomerge_worker.store.companions import companions, copy_files

_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG)
_THERE = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
"""How a file system refuses to rename a folder to a name that something has."""


def result_dtype(plans: list[TensorPlan], checkpoints: Mapping[str, Checkpoint]) -> torch.dtype:
    """The dtype of most of the result's weights, by elements: what its config names and it is loaded in."""
    weights = ((plan.dtype, plan.like) for plan in plans if plan.method is not None)
    return _most((dtype, checkpoints[like.model].shape(like.tensor)) for dtype, like in weights)


def weights_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of most of a checkpoint's weights, by elements."""
    named = ((checkpoint.dtype(name), checkpoint.shape(name)) for name in checkpoint.names)
    return _most((dtype, shape) for dtype, shape in named if dtype.is_floating_point)


def _most(tensors: Iterable[tuple[torch.dtype, tuple[int, ...]]]) -> torch.dtype:
    elements: Counter[torch.dtype] = Counter()
    for dtype, shape in tensors:
        elements[dtype] += math.prod(shape)
    return max(elements, key=lambda dtype: elements[dtype], default=torch.float32)


def export_config(config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """A config.json for the result: `config` with the dtype it now has."""
    key = "torch_dtype" if "torch_dtype" in config else "dtype"  # transformers 4 and 5
    return _with_dtype({**config, key: None}, dtype)


def _with_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """`config` with every dtype in it replaced, also those of the configs inside it."""
    result = {key: _with_dtype(value, dtype) if isinstance(value, dict) else value for key, value in config.items()}
    return result | {key: NAMES[dtype] for key in ("dtype", "torch_dtype") if key in result}


def export_checkpoint(
    recipe: Recipe,
    checkpoints: Mapping[str, Checkpoint],
    out_folder: Path,
    *,
    mask_seed: int,
    trust_remote_code: bool = False,
    extra_files: Mapping[str, str] | None = None,
    replace: bool = True,
    max_shard_bytes: int = 5_000_000_000,
    device: torch.device = CPU,
    statistics: Statistics | None = None,
) -> list[str]:
    """Carry out `recipe` and write the result to `out_folder`; return the names of its files.

    Config, tokenizer and generation config are those of the base_model, else of the first model, with the layers and
    the vocabulary that the recipe asks for. `extra_files` (name to text: a model card, the recipe) are written beside
    them. The folder appears as a whole or not at all. One that exists is replaced only if it is empty or an earlier
    export, and without `replace` never. What `statistics` knows of the sources is not found out again; without them, as
    in `evomerge merge`, nothing is kept.

    Raises:
        InputError: recipe or sources are wrong, or `out_folder` holds something else or cannot be written to.
        CandidateError: the merged weights are not finite.
        StorageError: the disk is full or failed.
    """
    checkpoints = Vocabularies(trust_remote_code=trust_remote_code).aligned(recipe, checkpoints)
    plans = plan_merge(recipe, checkpoints)
    anchor = checkpoints[anchor_of(recipe)]
    config = export_config(result_config(recipe, checkpoints), result_dtype(plans, checkpoints))
    with replacing(out_folder) if replace else appearing(out_folder) as folder:
        merger = Merger(checkpoints, mask_seed, device, statistics)
        entries = [Entry(plan.name, plan.dtype, merger.shape(plan)) for plan in plans]
        write_checkpoint(folder, entries, merger.merged(plans), max_shard_bytes, past_cache=True)
        texts = {
            "config.json": json.dumps(config, indent=2) + "\n",
            **(extra_files or {}),
            EXPORT_MARK: "written by evomerge\n",
        }
        copy_files(anchor.folder, folder, companions(anchor.folder, code=trust_remote_code))
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        written = sorted(folder.rglob("*"))
        for path in (*written, folder):
            sync(path)
        return [path.relative_to(folder).as_posix() for path in written if path.is_file()]


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that takes its place once the block is through; nothing of it stays if that fails.

    Raises:
        InputError: `out` holds something that no export wrote, or cannot be written to.
        StorageError: the disk is full or failed.
    """
    check_replaceable(out)
    old = out.parent / f".{out.name}.old"
    with appearing(out) as fresh:
        if old.exists() and not out.exists():  # one that was interrupted between its two renames
            old.rename(out)
        if old.exists():
            shutil.rmtree(old)
        yield fresh
        if out.exists():
            out.rename(old)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that becomes `out` once the block is through; nothing of it stays if that fails.

    Any number of processes may write to the same `out`: one of them wins.

    Raises:
        InputError: by then `out` is there, or it cannot be written to.
        StorageError: the disk is full or failed.
    """
    fresh = out.parent / f".{out.name}.{secrets.token_hex(4)}.partial"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _begun(fresh, out):
            yield fresh
            _rename(fresh, out)
        sync(out.parent)
    except OSError as error:
        if error.errno in _NOT_ALLOWED:
            raise InputError.at("out", f"{out} cannot be written: {error.strerror}") from error
        raise StorageError(f"{out} could not be written: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def _begun(fresh: Path, out: Path) -> Iterator[None]:
    """Make the folder `fresh` and hold its lock; those of `out` that nobody holds were left by processes that died."""
    with ExitStack() as own:
        with _locked(out.parent):  # or one that was just made, and is not held yet, would look like one left behind
            for left in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
                with suppress(FileNotFoundError), _locked(left, fcntl.LOCK_NB) as held:
                    if held:
                        shutil.rmtree(left)
            fresh.mkdir()
            own.enter_context(_locked(fresh))
        yield


@contextmanager
def _locked(folder: Path, how: int = 0) -> Iterator[bool]:
    """Hold the lock of a folder, if nobody else does and the file system has locks for folders (NFS has none)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | how)
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)


def _rename(fresh: Path, out: Path) -> None:
    try:
        fresh.rename(out)
    except OSError as error:
        if error.errno not in _THERE:
            raise
        message = f"{out} has appeared meanwhile and is left as it is; choose a folder that does not exist"
        raise InputError.at("out", message) from error


def check_replaceable(out: Path) -> None:
    """Refuse an `out` that is there, holds something and was not written by an export.

    Raises:
        InputError: it is so.
    """
    if out.is_dir():
        if any(out.iterdir()) and not (out / EXPORT_MARK).is_file():
            raise InputError.at("out", f"{out} holds other files; name a new folder, or empty this one")
    elif out.exists() or out.is_symlink():
        raise InputError.at("out", f"{out} is not a folder")
