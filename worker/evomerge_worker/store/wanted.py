"""Which files of a model are brought here, and what must be among them."""

from collections.abc import Iterable

from evomerge_worker.errors import InputError
from evomerge_worker.store.companions import CODE, SETTINGS, companions_among, matches, of_tokenizer

_WEIGHTS = ("config.json", "*.safetensors", "*.safetensors.index.json")
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
UNWANTED = ("consolidated*.safetensors",)
"""Mistral's own format: the same weights once more, under other names."""

BEHIND_ITS_MODEL = "name its model, with this as the model's adapter (in a recipe: model+adapter)"

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def wanted(names: Iterable[str], *, code: bool, adapter: bool = False) -> list[str]:
    """Those of `names` (relative to the model's folder) that are brought here: its weights, config and companions.

    Never pickles, Python files only with `code`. Of an `adapter`, two files and the tokenizer that it may bring.
    """
    names = list(names)
    if adapter:
        tokenizer = (name for name in names if "/" not in name and of_tokenizer(name))
        return sorted({ADAPTER_CONFIG, ADAPTER_WEIGHTS} & set(names) | set(tokenizer))
    return sorted({*filter(_is_weights, names), *companions_among(names, code=code)})


def deciding(names: Iterable[str], *, code: bool) -> list[str]:
    """Those of `names` that decide what the model answers: its weights, config, tokenizer, generation config."""
    patterns = SETTINGS + CODE if code else SETTINGS
    return sorted(name for name in names if "/" not in name and (_is_weights(name) or matches(name, patterns)))


def _is_weights(name: str) -> bool:
    return "/" not in name and matches(name, _WEIGHTS) and not matches(name, UNWANTED)


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
    if not any(matches(n, ("*.safetensors",)) and not matches(n, UNWANTED) for n in root):
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
    pickles = [n for n in root if matches(n, _PICKLES)]
    if pickles:
        message = (
            f"has its weights only as pickles ({pickles[0]}), which can run any code when they are loaded and are "
            "never read; convert them to safetensors"
        )
        return InputError.at(where, f"{uri} {message}")
    if gguf := _gguf(uri, where, root):
        return gguf
    if own := [n for n in root if matches(n, UNWANTED)]:
        message = f"has its weights only in Mistral's own format ({own[0]}); use the transformers format of the model"
        return LackingError.at(where, f"{uri} {message}")
    return LackingError.at(where, f"{uri} has no *.safetensors files")


def _gguf(uri: str, where: str, names: list[str]) -> InputError | None:
    if not (found := [n for n in names if n.endswith(".gguf")]):
        return None
    message = f"has its weights only as GGUF ({found[0]}), which is not read; use the safetensors that it was made from"
    return InputError.at(where, f"{uri} {message}")
