"""What an adapter's tensors are called, and which tensors of its model that means."""

import re

from evomerge_worker.shards.checkpoint import Checkpoint
from evomerge_worker.shards.tied import tied_embeddings

_PREFIX = "base_model.model."
_PAIRS = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))
"""How the names of A and B end: in a linear module, in an embedding."""
_WRAPPED = re.compile(r"\.(base_layer|modules_to_save)(?=\.)")  # how PEFT names a module that it has wrapped
_TOWERS = ((re.compile(r"^(model\.language_model|language_model\.model)\."), "model."),
           (re.compile(r"^language_model\.lm_head\."), "lm_head."))  # fmt: skip
"""A language model inside another, by its names on disk and in memory."""
_HEAD = "lm_head.weight"


def split(name: str) -> tuple[str | None, str, str]:
    """The module of a pair's tensor and how the names of its A and B end; None for a tensor that is saved whole.

    Raises:
        ValueError: it is a part of another kind of adapter.
    """
    for of_a, of_b in _PAIRS:
        for end in (of_a, of_b):
            if name.endswith(f".{end}"):
                return name.removesuffix(f".{end}"), of_a, of_b
    if ".lora_" in name:
        raise ValueError(f"{name} is none of the tensors of a LoRA adapter that are known here")
    return None, "", ""


def target_of(name: str, model: Checkpoint) -> str:
    """The tensor of `model` that an adapter calls `name`; a head that is tied to the embeddings need not be there.

    Raises:
        ValueError: there is none, or several may be meant.
    """
    bare = bare_name(name)
    if bare in model:
        return bare
    of_tower = [known for known in model.names if untowered(known) == untowered(bare)]
    found = of_tower or [n for n in model.names if n.endswith(f".{bare}") or bare.endswith(f".{n}")]
    if len(found) != 1:
        if bare.endswith(_HEAD) and tied_embeddings(model):
            return bare
        raise ValueError(f"the model has no tensor {bare}, which {name} changes")
    return found[0]


def bare_name(name: str) -> str:
    """The name without what PEFT adds to it."""
    return _WRAPPED.sub("", name.removeprefix(_PREFIX))


def untowered(name: str) -> str:
    """The name that a tensor of a language model inside another has in the language model alone."""
    for pattern, plain in _TOWERS:
        name = pattern.sub(plain, name)
    return name
