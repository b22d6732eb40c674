"""Which files of a model are brought here, and what must be among them."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from evomerge_worker.errors import InputError

COMPANIONS = (
    "generation_config.json",
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
"""What goes with the weights of a model and its config: tokenizer, chat template, generation config."""

WANTED = ("config.json", "*.safetensors", "*.safetensors.index.json", *COMPANIONS)
CODE = ("*.py",)
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
UNWANTED = ("consolidated*.safetensors",)
"""Mistral's own format: the same weights once more, under other names."""

BEHIND_ITS_MODEL = "name its model, with this as the model's adapter (in a recipe: model+adapter)"

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def wanted(names: Iterable[str], *, code: bool, adapter: bool = False) -> list[str]:
    """Those of `names` (relative to the model's folder) that are needed: never pickles, Python files only with `code`.

    Nothing in subfolders is needed: transformers reads a checkpoint from one flat folder. Of an `adapter`, two files.
    """
    if adapter:
        return sorted({ADAPTER_CONFIG, ADAPTER_WEIGHTS} & set(names))
    patterns = WANTED + CODE if code else WANTED
    return sorted(n for n in names if "/" not in n and _matches(n, patterns) and not _matches(n, UNWANTED))


def companions(folder: Path, *, code: bool) -> list[Path]:
    """The files of a model's folder that go with its weights, Python files only with `code`."""
    patterns = COMPANIONS + CODE if code else COMPANIONS
    return sorted(path for path in folder.iterdir() if _matches(path.name, patterns) and path.is_file())


class LackingError(InputError):
    """Files are missing that would make a checkpoint of what is there."""


def check_listing(uri: str, where: str, names: Iterable[str], *, adapter: bool = False) -> None:
    """Refuse what cannot be a Hugging Face checkpoint, going by its file names (one level of subfolders included).

    With `adapter`, what cannot be a PEFT adapter.

    Raises:
        LackingError: files are missing.
        InputError: it is something else.
    """
    found = sorted(names)
    root = [n for n in found if "/" not in n]
    if adapter:
        _check_adapter(uri, where, root)
        return
    if "config.json" not in root:
        raise _without_config(uri, where, found)
    if not any(_matches(n, ("*.safetensors",)) and not _matches(n, UNWANTED) for n in root):
        raise _without_weights(uri, where, root)


def _check_adapter(uri: str, where: str, root: list[str]) -> None:
    if not root:
        raise LackingError.at(where, f"{uri} is empty or does not exist")
    if ADAPTER_CONFIG not in root:
        raise LackingError.at(where, f"{uri} has no {ADAPTER_CONFIG}; it must be the folder of a PEFT adapter")
    if ADAPTER_WEIGHTS in root:
        return
    if "adapter_model.bin" in root:
        message = "has its weights only as a pickle (adapter_model.bin), which can run code; save it as safetensors"
        raise InputError.at(where, f"{uri} {message}")
    raise LackingError.at(where, f"{uri} has no {ADAPTER_WEIGHTS}")


def _without_config(uri: str, where: str, found: list[str]) -> InputError:
    if not found:
        return LackingError.at(where, f"{uri} is empty or does not exist")
    if ADAPTER_CONFIG in found:
        return InputError.at(where, f"{uri} is an adapter, not a whole model; {BEHIND_ITS_MODEL}")
    deeper = [n for n in found if n.endswith("/config.json")]
    if deeper:
        folder = deeper[0].removesuffix("config.json")
        message = f"has no config.json, but its folder {folder} has one; is the path one level too high?"
        return InputError.at(where, f"{uri} {message}")
    if gguf := _gguf(uri, where, [n for n in found if "/" not in n]):
        return gguf
    return LackingError.at(where, f"{uri} has no config.json; it must be the folder of a Hugging Face checkpoint")


def _without_weights(uri: str, where: str, root: list[str]) -> InputError:
    pickles = [n for n in root if _matches(n, _PICKLES)]
    if pickles:
        message = (
            f"has its weights only as pickles ({pickles[0]}), which can run any code when they are loaded and are "
            "never read; convert them to safetensors"
        )
        return InputError.at(where, f"{uri} {message}")
    if gguf := _gguf(uri, where, root):
        return gguf
    if own := [n for n in root if _matches(n, UNWANTED)]:
        message = f"has its weights only in Mistral's own format ({own[0]}); use the transformers format of the model"
        return LackingError.at(where, f"{uri} {message}")
    return LackingError.at(where, f"{uri} has no *.safetensors files")


def _gguf(uri: str, where: str, names: list[str]) -> InputError | None:
    if not (found := [n for n in names if n.endswith(".gguf")]):
        return None
    message = f"has its weights only as GGUF ({found[0]}), which is not read; use the safetensors that it was made from"
    return InputError.at(where, f"{uri} {message}")


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
