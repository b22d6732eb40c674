"""Whether a checkpoint holds what its own configuration asks for: told here, and not by every candidate's load."""

import re
from collections.abc import Iterator
from typing import Any

import torch

from evomerge_worker.merge.fit import and_more
from evomerge_worker.shards import Checkpoint

_MEND = "fetch the model again, config.json and weights from one place"


def unfit_for_config(checkpoint: Checkpoint, config: Any) -> Iterator[str]:
    """In what the tensors of `checkpoint` are not those of the model that `config` describes, a sentence a kind.

    The model is made without memory (on torch's meta device). Where transformers renames or fuses tensors as it loads
    them, only those are compared that have one name on both sides. Models with code of their own are not looked at.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    if config.model_type not in CONFIG_MAPPING:
        return
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        yield f"transformers has no causal language model of type {config.model_type}; only those can be evaluated"
        return
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever the model's own class finds wrong
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        yield f"transformers cannot make the model that config.json describes ({reason}); {_MEND}"
        return
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    held = set(checkpoint.names)
    odd = [name for name in checkpoint.names if name in wanted and checkpoint.shape(name) != wanted[name]]
    if odd:
        shapes = f"{list(checkpoint.shape(odd[0]))}, but config.json asks for {list(wanted[odd[0]])}"
        yield f"tensor {odd[0]} has shape {shapes}{and_more(len(odd) - 1)}; {_MEND}"
    absent = [name for name in wanted if name not in held and not _may_be_absent(model, name)]
    if absent and held <= set(wanted):  # else it may be there under another name
        architecture = type(model).__name__
        yield f"lacks tensor {absent[0]}, which {architecture} needs{and_more(len(absent) - 1)}; {_MEND}"


def _may_be_absent(model: Any, name: str) -> bool:
    """Tensors that are copies of others, or that the architecture itself can do without."""
    spared = model._keys_to_ignore_on_load_missing or ()
    return name in model.all_tied_weights_keys or any(re.search(pattern, name) for pattern in spared)
