"""Which files hold a checkpoint's weights: one file, or shards that an index names."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
POINTER = "is a Git LFS pointer, not the file: run git lfs pull in its folder"
_POINTER_START = b"version https://git-lfs.github.com/spec/"


def shard_files(folder: Path) -> tuple[list[str], dict[str, str] | None, list[str]]:
    """The shards of `folder` by file name, the index's map from tensor to file (None without one), what is wrong."""
    if (folder / SINGLE).is_file():
        return [SINGLE], None, []
    if (folder / INDEX).is_file():
        return _read_index(folder / INDEX)
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles:
        return [], None, [f"only pickled weights ({pickles[0]}), which can run code; save the model as safetensors"]
    return [], None, [f"has neither {SINGLE} nor {INDEX}; save the model once more with save_pretrained"]


def is_pointer(path: Path) -> bool:
    """Whether a file is what Git leaves of a large one that Git LFS has not fetched."""
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER_START)) == _POINTER_START
    except OSError:
        return False


def _read_index(path: Path) -> tuple[list[str], dict[str, str] | None, list[str]]:
    try:
        index: Any = json.loads(path.read_bytes())
    except ValueError as error:
        return [], None, [f"{INDEX} is not JSON ({error}); fetch it again"]
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        return [], None, [f"{INDEX} has no weight_map from tensors to files"]
    if not weight_map:
        return [], None, [f"{INDEX} lists no tensors"]
    files = sorted(set(weight_map.values()))
    problems = [
        f"{INDEX} names {file}, which is not a safetensors file inside the folder"
        for file in files
        if not _inside(file)
    ]
    return [file for file in files if _inside(file)], weight_map, problems


def _inside(file: str) -> bool:
    """Whether `file` is a relative name that stays in its folder, by its text alone: shards may be symbolic links."""
    path = PurePosixPath(file)
    return path.suffix == ".safetensors" and not path.is_absolute() and ".." not in path.parts and "\\" not in file
