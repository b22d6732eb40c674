"""Run by mergekit's own Python: answers questions about recipes, one JSON line in, one JSON line out.

{"ask": "merge", "recipe": ..., "out": folder, "masks": file or null, "adapted": folder}
    carries the recipe out as mergekit does, but for one thing: TIES, DELLA and SCE leave open which of several equal
    elements come first, and are made to take them in their order. With masks (safetensors, "<model>|<tensor>"), the
    random draws of DARE and DELLA are replaced by these, after a check that mergekit draws with the probabilities that
    they were drawn with (beside them, "<model>|<tensor>|probability"). Models with adapters are merged in float32 and
    kept in the folder "adapted".
{"ask": "adapter", "model": folder, "out": folder, "seed": number, "config": {...}}
    lets PEFT write a LoRA adapter of that config, with random weights.
{"ask": "resolve", "recipe": ...}
    answers what mergekit has planned for every tensor: inputs, base, shared and per-model parameters.
{"ask": "architectures"}
    answers the tensors before, in and after three layers of every architecture that mergekit knows by name.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import Any
from unittest import mock

import torch
from mergekit.architecture import get_architecture_info
from mergekit.architecture.json_definitions import JSON_ARCHITECTURES
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache, SaveTensor
from mergekit.merge import _model_out_config, run_merge
from mergekit.merge_methods import generalized_task_arithmetic
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

OPTIONS = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False)


def merge(question: dict[str, Any]) -> None:
    config = MergeConfiguration.model_validate(question["recipe"])
    adapted = {"lora_merge_cache": question.get("adapted"), "lora_merge_dtype": "float32"}
    with given_masks(question["masks"]), first_among_equals():
        run_merge(config, question["out"], OPTIONS.model_copy(update=adapted))


def adapter(question: dict[str, Any]) -> None:
    torch.manual_seed(question["seed"])
    model = AutoModelForCausalLM.from_pretrained(question["model"], dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **question["config"]))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    adapted.save_pretrained(question["out"])


@contextmanager
def first_among_equals() -> Iterator[None]:
    """Let equal elements keep their order, which sorting leaves open otherwise.

    It decides which of them TIES and breadcrumbs keep; DELLA's probabilities; and by SCE's choice the weights of all.
    """
    real_sort = torch.sort

    def topk(values: torch.Tensor, k: int, largest: bool) -> tuple[torch.Tensor, torch.Tensor]:
        ordered = real_sort(values, descending=largest, stable=True)
        return ordered.values[:k], ordered.indices[:k]

    stable = {name: partial(getattr(torch, name), stable=True) for name in ("argsort", "sort")}
    with mock.patch.multiple(torch, topk=topk, **stable):
        yield


@contextmanager
def given_masks(file: str | None) -> Iterator[None]:
    """Let DARE and DELLA drop by the masks in `file`."""
    masks = load_file(file) if file else {}
    real_group = generalized_task_arithmetic.GeneralizedTaskArithmeticMerge.merge_group
    real_sparsify = generalized_task_arithmetic.sparsify

    def merge_group(self: Any, group: Any, /, **parameters: Any) -> torch.Tensor:
        keys = iter([f"{entry.id.model.path}|{group.metadata.name}" for entry in group.non_base])

        def sparsify(delta: torch.Tensor, **options: Any) -> torch.Tensor:
            with mock.patch.object(torch, "bernoulli", draw(next(keys))):
                return real_sparsify(delta, **options)

        with mock.patch.object(generalized_task_arithmetic, "sparsify", sparsify):
            return real_group(self, group, **parameters)

    def draw(key: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def bernoulli(probability: torch.Tensor) -> torch.Tensor:
            apart = (probability - masks[f"{key}|probability"].view_as(probability)).abs().max()
            if not apart <= 1e-6:
                raise ValueError(f"{key}: its probabilities are {apart} from those that the mask was drawn with")
            return masks[key].view_as(probability).to(probability.dtype)

        return bernoulli

    with mock.patch.object(generalized_task_arithmetic.GeneralizedTaskArithmeticMerge, "merge_group", merge_group):
        yield


def resolve(question: dict[str, Any]) -> dict[str, Any]:
    config = MergeConfiguration.model_validate(question["recipe"])
    LoaderCache().setup(OPTIONS)
    architecture = get_architecture_info(config, OPTIONS)
    planner = MergePlanner(config, architecture, OPTIONS, _model_out_config(config, architecture))
    planned = {}
    for save in planner.plan_to_disk("never written"):
        if not isinstance(save, SaveTensor):
            continue
        task = save.tensor_task
        planned[save.tensor_name] = {
            "inputs": {m.model.path: w.name for m, w in task.gather_tensors.weight_info.items()},
            "base": task.base_model.model.path if task.base_model else None,
            "shared": dict(task.parameters.items()),
            "per_model": {m.model.path: dict(values.items()) for m, values in task.input_parameters.items()},
        }
    return planned


def architectures() -> dict[str, Any]:
    known = {}
    for architecture in JSON_ARCHITECTURES:
        if len(architecture.modules) != 1:
            continue  # several stacks of layers: towers beside a language model
        (module,) = architecture.modules.values()
        definition = module.architecture.definition
        known[",".join(architecture.architectures)] = {
            "before": [named(w.name, 0) for w in definition.pre_weights],
            "layers": [[named(w.name, i) for w in definition.layer_templates.weights] for i in range(3)],
            "after": [named(w.name, 0) for w in definition.post_weights],
        }
    return known


def named(template: str, layer: int) -> str:
    """A tensor's name in a model of three layers."""
    values = {"layer_index": layer, "layer_index+1": layer + 1, "layer_index-1": layer - 1}
    values |= {"num_layers": 3, "num_layers+1": 4, "num_layers-1": 2}
    for key, value in values.items():
        template = template.replace("${" + key + "}", str(value))
    return template


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            with redirect_stdout(sys.stderr):  # whatever mergekit prints
                reply = {"answer": answer(question)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


def answer(question: dict[str, Any]) -> Any:
    match question["ask"]:
        case "merge":
            return merge(question)
        case "adapter":
            return adapter(question)
        case "resolve":
            return resolve(question)
        case "architectures":
            return architectures()


main()
