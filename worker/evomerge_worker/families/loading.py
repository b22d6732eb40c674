"""Opening models and tokenizers through transformers, from local folders only."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from evomerge_worker.errors import InputError, where_of
from evomerge_worker.pages import huge_pages
from evomerge_worker.shards import Checkpoint

_ALIGNED = 64  # bytes, as torch aligns tensors


def load_model(checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool) -> Any:
    """The causal language model of `checkpoint`, ready for inference.

    Where the folder holds no weights they are read as the checkpoint gives them.

    Raises:
        InputError: transformers does not know the architecture, or tensors are missing.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    load = _from_folder if checkpoint.shell is None else _from_shell
    try:
        model, info = load(checkpoint, dtype, trust_remote_code)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, KeyError, RuntimeError, OSError, ImportError) as error:
        raise InputError.at(where_of(checkpoint.name), f"transformers cannot load it: {error}") from error
    if info["missing_keys"]:
        absent = sorted(info["missing_keys"])
        raise InputError.at(
            where_of(checkpoint.name),
            f"it lacks tensor {absent[0]}, which its architecture {type(model).__name__} needs ({len(absent)} such)",
        )
    if device.type == "cpu":
        _settle(model)
    return _ready(model, device)


def _settle(model: Any) -> None:
    """Move the weights to memory of their own, one after the other, in huge pages where the system gives them.

    Merging writes to it a third faster than to pages of 4 KiB, and twice as fast as to the private pages of a file that
    transformers leaves weights in, which begin after a header of any length.
    """
    tensors = [*model.parameters(), *model.buffers()]
    places = list(accumulate((-(-tensor.nbytes // _ALIGNED) * _ALIGNED for tensor in tensors), initial=0))
    memory = huge_pages(places[-1])
    for place, tensor in zip(places, tensors, strict=False):
        if tensor.numel():
            own = memory[place : place + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            tensor.data = own.copy_(tensor.detach())


def _from_folder(checkpoint: Checkpoint, dtype: torch.dtype, code: bool) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    loaded: tuple[Any, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
        checkpoint.folder,
        dtype=dtype,
        trust_remote_code=code,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    return loaded


def _from_shell(checkpoint: Checkpoint, dtype: torch.dtype, code: bool) -> tuple[Any, dict[str, Any]]:
    """transformers takes weights from memory only for a class and a configuration, not for a folder."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=code, local_files_only=True)
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(config, trust_remote_code=code))
    state = {name: _Once(partial(_copy, checkpoint, name)) for name in checkpoint.names}
    model, info = kind.from_pretrained(None, config=config, state_dict=state, dtype=dtype, output_loading_info=True)
    if (checkpoint.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder, local_files_only=True)
    return model, info


def _copy(checkpoint: Checkpoint, name: str) -> Tensor:
    return checkpoint.tensor(name).clone()  # or the model would be the files


def load_state(kind: Any, state: dict[str, Tensor], config: Any, *, dtype: torch.dtype, device: torch.device) -> Any:
    """A model of the class `kind` from tensors as they lie on disk, converted as transformers does on loading.

    `state` is emptied on the way, each tensor once it has been converted: memory never holds all of them twice.
    """
    lent = {name: _Once(partial(state.pop, name)) for name in list(state)}
    return _ready(kind.from_pretrained(None, config=config, state_dict=lent, dtype=dtype), device)


@dataclass(frozen=True)
class _Once:
    """A tensor that is there when transformers asks for all of it, as it does of those in files."""

    give: Callable[[], Tensor]

    def __getitem__(self, _: object) -> Tensor:
        return self.give()


def _ready(model: Any, device: torch.device) -> Any:
    return model.to(device).eval().requires_grad_(False)
