"""Whether a checkpoint holds what its own configuration asks for: told here, and not by every candidate's load."""

import re
from collections.abc import Iterator, Sequence, Set
from typing import Any

import torch

from evomerge_contract.report import Layout, Problem
from evomerge_worker.merge.fit import Misfit, and_more, is_computed
from evomerge_worker.merge.names import named_class
from evomerge_worker.prepare.mistakes import Mistakes
from evomerge_worker.prepare.sources import Opened
from evomerge_worker.shards import Checkpoint

_MEND = "fetch the model again, config.json and weights from one place"
_COSMETIC = ("_name_or_path", "transformers_version")


def check_own_configs(sources: Sequence[Opened], mistakes: Mistakes, *, evaluated: bool) -> None:
    """Collect in what each model does not fit its own config.json, unless something has been told of it already.

    A model with 40,000 experts' tensors takes seconds, so models that are alike are looked at once.
    """
    compared_with = {problem.other for problem in mistakes.found if isinstance(problem, Misfit)}
    known: dict[Any, list[str]] = {}
    for source in sorted(sources, key=lambda source: source.name not in compared_with):  # they may be to blame
        checkpoint, config = source.checkpoint, source.config
        if checkpoint is None or config is None or any(p.path == source.where for p in mistakes.told()):
            continue
        settings = {key: value for key, value in config.to_dict().items() if key not in _COSMETIC}
        tensors = tuple((name, checkpoint.shape(name), checkpoint.dtype(name)) for name in checkpoint.names)
        key = (tensors, repr(settings))
        if key not in known:
            known[key] = list(unfit_for_config(checkpoint, config, evaluated=evaluated))
        mistakes.found += [Problem(path=source.where, message=message) for message in known[key]]
        if known[key]:
            mistakes.broken.add(source.name)


def unfit_for_config(checkpoint: Checkpoint, config: Any, *, evaluated: bool = True) -> Iterator[str]:
    """In what the tensors of `checkpoint` are not those of the model that `config` describes, a sentence a kind.

    The model is made, and its tensors loaded, without memory (on torch's meta device), so that names and shapes are
    compared after all that transformers renames, fuses or splits on loading. `evaluated`: it must be a causal language
    model; else it is of the class that its config.json names, if it names one. Models with code of their own are not
    looked at.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    if config.model_type not in CONFIG_MAPPING or type(config) is not CONFIG_MAPPING[config.model_type]:
        return
    kind = None if evaluated else named_class(config)
    if kind is None and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        if evaluated:
            yield f"transformers has no causal language model of type {config.model_type}; only those can be evaluated"
        return
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config) if kind is None else kind._from_config(config)
    except Exception as error:  # whatever the model's own class finds wrong, an assertion for one
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        model_type = config.model_type
        yield f"transformers cannot make a model of type {model_type} from config.json ({reason}); mend that file"
        return
    yield from _misfits(checkpoint, config, model)


def _misfits(checkpoint: Checkpoint, config: Any, model: Any) -> Iterator[str]:
    info = _loaded(checkpoint, model)
    architecture = type(model).__name__
    torn = sorted(info.conversion_errors)
    odd = sorted((name, list(shape), list(wanted)) for name, shape, wanted in info.mismatched_keys)
    absent = {name for name in info.missing_keys if _copies(model, name) <= info.missing_keys}.difference(torn)
    stray = {name for name in info.unexpected_keys if not _is_computed(checkpoint, name)}
    said = getattr(config.get_text_config(), "num_hidden_layers", None)
    if beyond := _beyond(absent | stray, checkpoint.layout, said):
        made = f"its tensors make {checkpoint.layout.layers} layers"
        yield f"{made}, but config.json says {said} (num_hidden_layers); {_MEND}"
    absent, stray = absent - beyond, stray - beyond
    if odd:
        name, shape, wanted = odd[0]
        told = f"tensor {name} has shape {shape}, but config.json asks for {wanted}"
        yield f"{told}{and_more(len(odd) - 1)}; {_MEND}"
    if torn:
        yield f"the tensors that make up {torn[0]} do not go together{and_more(len(torn) - 1)}; {_MEND}"
    if absent:
        yield f"lacks tensor {min(absent)}, which {architecture} needs{and_more(len(absent) - 1)}; {_MEND}"
    if stray:
        told = f"has tensor {min(stray)}, which {architecture} has no place for{and_more(len(stray) - 1)}"
        yield f"{told}; {_MEND}, or take what is not needed out of its files"


def _beyond(names: Set[str], layout: Layout, said: object) -> Set[str]:
    """Those of `names` that belong to layers which the tensors make and config.json does not count, or the reverse."""
    if not isinstance(said, int) or said == layout.layers:
        return set()
    layer = re.compile(rf"(^|\.){re.escape(layout.layer_prefix)}(\d+)\.")
    shared = min(said, layout.layers)
    return {name for name in names if (match := layer.search(name)) and int(match[2]) >= shared}


def _loaded(checkpoint: Checkpoint, model: Any) -> Any:
    """What transformers says of loading the tensors of `checkpoint` into `model`, which is on the meta device.

    Those that predict further tokens are left out: the class has none of them.
    `from_pretrained` would take memory for whatever is missing or converted.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    state = {
        name: torch.empty(checkpoint.shape(name), dtype=checkpoint.dtype(name), device="meta")
        for name in checkpoint.names
        if name not in checkpoint.carried
    }
    how = LoadStateDictConfig(device_map={"": "meta"}, weight_mapping=get_model_conversion_mapping(model))
    info, _ = convert_and_load_state_dict_in_model(model, state, how)
    model._adjust_missing_and_unexpected_keys(info)  # leaves out what the class itself can do without
    return info


def _copies(model: Any, name: str) -> Set[str]:
    """The parameters that are tied to `name`, itself included: one of them on disk is enough."""
    tied = model.all_tied_weights_keys  # copy to original
    first = tied.get(name, name)
    return {first, *(copy for copy, original in tied.items() if original == first)}


def _is_computed(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a tensor is no weight: whole numbers and truth values, or a buffer by its name."""
    return is_computed(name) or (name in checkpoint and not checkpoint.dtype(name).is_floating_point)
