"""What goes with the weights of a model: all that its folder holds beside them, unless there is a reason.

Reasons are that it is other weights, or the same in another format; code; training state; a cache; or words that are
true of that model alone.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from evomerge_contract.log import LOG_NAME

MADE_OF = "evomerge_made_of.json"
"""The digests of the model and the adapter that a model in the cache was made from."""
GENERATION = "generation_config.json"
SETTINGS = (
    GENERATION,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",  # sentencepiece
    "*.tiktoken",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Those of them that change what a language model answers: its digest counts these, and none of the others."""
CODE = ("*.py",)
_TEMPLATES = "additional_chat_templates/*"
"""Beside `SETTINGS` a part of the tokenizer: templates that are asked for by name."""

_WEIGHTS = (
    "*.safetensors *.bin *.pt *.pth *.ckpt *.gguf *.ggml *.onnx *.onnx_data *.onnx.data *.pb *.tflite *.h5 *.msgpack "
    "*.ot *.npz *.npy *.mlmodel *.pte *.engine *.nemo *.distcp *.llamafile"
)
_CODE_OR_PICKLED = "*.py *.pyc *.pkl *.pickle *.joblib *.so *.dll *.dylib *.exe *.sh *.ipynb"
_OTHER = "*.index.json *.parquet *.arrow *.zip *.tar *.tar.* *.tgz *.7z"
_OF_TRAINING = (
    "trainer_state.json training_args* train_results.json eval_results.json all_results.json optimizer* scheduler.* "
    "rng_state* scaler.* events.out.tfevents* latest *.log adapter_config.json"
)
_OF_THIS_ONE = f"readme* mergekit*.y*ml recipe.yaml run.json report.html {LOG_NAME} {MADE_OF}"
_LEFT_BELOW = " ".join((_WEIGHTS, _CODE_OR_PICKLED, _OTHER, _OF_TRAINING, _OF_THIS_ONE)).split()
_LEFT = (*_LEFT_BELOW, "config.json")
_FOLDERS = "__pycache__ checkpoint-* global_step* runs wandb logs reports original"
_MODULE = "[0-9]*_*"
"""A folder of one of the modules of SentenceTransformers, 1_Pooling for one: its weights are no other model's."""


def companions(folder: Path, *, code: bool) -> list[str]:
    """The files of a model's folder that go with its weights, by their paths in it; its Python files with `code`."""
    return companions_among(_files(folder), code=code)


def settings(folder: Path, *, code: bool) -> list[Path]:
    """Those of them that change what the model answers."""
    patterns = SETTINGS + CODE if code else SETTINGS
    return sorted(path for path in folder.iterdir() if matches(path.name, patterns) and path.is_file())


def companions_among(names: Iterable[str], *, code: bool) -> list[str]:
    """Those of `names`, the paths of a model's files in its folder, that go with its weights.

    A folder below it that holds weights is another model, or the same in another format, and is left as a whole.
    """
    names = list(names)
    others = {name.partition("/")[0] for name in names if "/" in name and _is_weights(name)}
    return sorted(name for name in names if _goes(name, others, code=code))


def copy_files(origin: Path, to: Path, names: Iterable[str]) -> None:
    """Copy files by their paths in the folder `origin`."""
    for name in names:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin / name, to / name)


def of_tokenizer(name: str) -> bool:
    """Whether a companion is a part of the tokenizer."""
    return name != GENERATION and matches(name, (*SETTINGS, _TEMPLATES))


def is_left(folder: str) -> bool:
    """Whether nothing in a folder of that name, right below a model's, goes with its weights."""
    return folder.startswith(".") or matches(folder, _FOLDERS.split())


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name is like one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _goes(name: str, others: set[str], *, code: bool) -> bool:
    *folders, file = PurePosixPath(name).parts
    if file.startswith(".") or any(map(is_left, folders)):
        return False
    if not folders:
        return matches(file, SETTINGS) or (code and matches(file, CODE)) or not matches(file.lower(), _LEFT)
    if matches(folders[0], (_MODULE,)):
        return file.endswith(".safetensors") or not matches(file.lower(), _LEFT_BELOW)
    return folders[0] not in others and not matches(file.lower(), _LEFT_BELOW)


def _is_weights(name: str) -> bool:
    return matches(name.lower(), _WEIGHTS.split())


def _files(folder: Path) -> Iterator[str]:
    """The files of a folder and those below it that may go with it."""
    for place, below, files in os.walk(folder):
        below[:] = [name for name in below if not is_left(name)]
        paths = (Path(place, file) for file in files)
        yield from (path.relative_to(folder).as_posix() for path in paths if path.is_file())
