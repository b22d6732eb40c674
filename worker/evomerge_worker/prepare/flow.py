"""Stages that search the order of layers: how the scales of hops are folded, and what keeps layers from moving.

A layer adds the outputs of its branches, attention and feed-forward, to its input. What it makes of that input does
not change where the input is divided by a number, since norms come first. So a hop's scale need not be applied to the
input: it is enough to divide the outputs, which a branch's last weights do.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from evomerge_contract.filters import names
from evomerge_contract.manifest import BASE
from evomerge_contract.methods import any_of
from evomerge_contract.recipe import Recipe, Slice, SliceSource
from evomerge_contract.report import Flow, Layout, Problem
from evomerge_worker.merge.layers import result_config
from evomerge_worker.merge.names import Names
from evomerge_worker.merge.plan import plan_merge
from evomerge_worker.prepare.mistakes import Mistakes
from evomerge_worker.prepare.sources import Opened
from evomerge_worker.shards import Checkpoint


class _Branches(NamedTuple):
    """Modules of a layer, as patterns: the last ones of its `attention` and its `feed_forward`, which are divided.

    `multiplied` are the first linear maps of branches without a norm in front. `origin` is that of the last ones.
    """

    attention: str
    feed_forward: str
    multiplied: str | None = None
    origin: float = 0.0


_MLP = r"mlp\.down_proj"
_EXPERTS = r"(mlp|block_sparse_moe)\.(experts\.(\d+\.)?)?(w2|down_proj)"
_PLAIN = _Branches(r"self_attn\.o_proj", _MLP)
_SPARSE = _Branches(r"self_attn\.o_proj", _EXPERTS)
_NORMS = _Branches("post_attention_layernorm", "post_feedforward_layernorm")
FAMILIES = {
    **dict.fromkeys(("gemma", "granite", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3"), _PLAIN),
    **dict.fromkeys(("mixtral", "qwen3_moe"), _SPARSE),
    **dict.fromkeys(("gemma2", "gemma3_text"), _NORMS._replace(origin=-1.0)),
    "gpt2": _Branches(r"attn\.c_proj", r"mlp\.c_proj"),
    "gpt_neox": _Branches(r"attention\.dense", r"mlp\.dense_4h_to_h"),
    "olmo2": _NORMS._replace(multiplied=r"self_attn\.[qkv]_proj|mlp\.(gate|up)_proj"),
    "phi": _Branches(r"self_attn\.dense", r"mlp\.fc2"),
}
"""By model_type. A family stands here once a test has compared its folded layers with scaled ones."""

_RECURRENT = re.compile(r"(^|\.)(A_log|dt_bias|conv1d|time_decay|time_mix_\w)\b")


def check_flows(flows: Sequence[Sequence[str]], sources: Sequence[Opened], mistakes: Mistakes) -> None:
    """Collect what keeps the layers of the models of each stage from following each other in any order.

    Names of earlier stages' winners, which are no sources, are passed over.
    """
    opened = {source.name: source for source in sources}
    told = set[str]()
    for models in flows:
        known = [opened[model] for model in models if model in opened]
        for source in known:
            if source.checkpoint is not None and source.name not in told:
                told.add(source.name)
                mistakes.found += _unfoldable(source)
        _check_stack([source for source in known if source.checkpoint is not None], mistakes)


def flow_of(model_type: Any, layout: Layout, layers: Mapping[str, int]) -> Flow | None:
    """How hops are folded in a model of that type whose tensors `layout` has; None for a family that is not known.

    `layers` is the number of layers of each model.
    """
    branches = FAMILIES.get(model_type)
    if branches is None:
        return None
    divided = _in_memory(_those(layout.layer_tensors, f"{branches.attention}|{branches.feed_forward}"))
    multiplied = _those(layout.layer_tensors, branches.multiplied, "weight") if branches.multiplied else []
    about = dict.fromkeys(divided, branches.origin) if branches.origin else {}
    return Flow(divided=divided, multiplied=multiplied, about=about, layers=dict(layers))


def _those(tensors: Sequence[str], modules: str, kinds: str = "weight|bias") -> list[str]:
    """The tensors of modules of that pattern; fused experts are tensors without a kind."""
    wanted = re.compile(rf"({modules})(\.({kinds}))?")
    return [tensor for tensor in tensors if wanted.fullmatch(tensor)]


def _in_memory(tensors: Sequence[str]) -> list[str]:
    """Those names, experts' as they are called once they are fused."""
    return list(dict.fromkeys(names(f".{tensor}")[-1].removeprefix(".") for tensor in tensors))


def _unfoldable(source: Opened) -> Iterator[Problem]:
    """Why the scales of hops cannot be folded into the weights of a model."""
    checkpoint = source.checkpoint
    if checkpoint is None:
        return
    model_type = checkpoint.config.get("model_type")
    branches = FAMILIES.get(str(model_type))
    why = _reason(source, checkpoint)
    if branches is None or why is not None:
        why = why or f"no scale is folded into models of type {model_type}"
        known = any_of(sorted(FAMILIES))
        message = f"{why}, so no stage can search the order of its layers; take models of type {known}, or leave it out"
        yield Problem(path=source.where, message=message)
        return
    for layer, tensors in enumerate(checkpoint.layer_tensors):
        for branch in (branches.attention, branches.feed_forward):
            if not _those(tensors, branch):
                place = f"{checkpoint.layout.layer_prefix}{layer}"
                message = (
                    f"{place} has no tensor like {branch}.weight, which models of type {model_type} have, so no stage "
                    "can search the order of its layers; leave it out"
                ).replace("\\", "")
                yield Problem(path=source.where, message=message)
                return


def _reason(source: Opened, checkpoint: Checkpoint) -> str | None:
    """What sets a model apart whose layers cannot be folded."""
    if source.config is not None and not type(source.config).__module__.startswith("transformers."):
        return "it runs on code of its own, whose layers may do anything"
    recurrent = next((name for name in checkpoint.layout.layer_tensors if _RECURRENT.search(name)), None)
    if recurrent is not None:
        return f"it has recurrent layers (such as those with {recurrent}), into which no scale is folded"
    vision = checkpoint.config.get("vision_config")
    if isinstance(vision, dict) and vision.get("deepstack_visual_indexes"):
        return "it adds features of images behind single layers (deepstack), which no scale of its weights reaches"
    return None


def _check_stack(sources: Sequence[Opened], mistakes: Mistakes) -> None:
    """Plan a stack of all layers of all models: what it refuses here, it would refuse in every candidate."""
    if not sources or sources[0].checkpoint is None or any(s.name in mistakes.strange for s in sources):
        return
    donor, called = sources[0].checkpoint, Names()
    checkpoints = {s.name: called.under(donor, s.checkpoint) for s in sources if s.checkpoint is not None}
    whole = {name: (0, checkpoint.layout.layers) for name, checkpoint in checkpoints.items()}
    parts = [Slice(sources=[SliceSource(model=name, layer_range=layers)]) for name, layers in whole.items()]
    last = Slice(sources=[SliceSource(model=donor.name, layer_range=whole[donor.name])])
    recipe = Recipe(merge_method="passthrough", base_model=donor.name, slices=[*parts, last])
    with mistakes.collected():
        plan_merge(recipe, checkpoints)
        result_config(recipe, checkpoints)


def layers_of(sources: Sequence[Opened]) -> dict[str, int]:
    """The number of layers of each model of the pool."""
    checkpoints = [source.checkpoint for source in sources if source.checkpoint is not None]
    return {checkpoint.name: checkpoint.layout.layers for checkpoint in checkpoints if checkpoint.name != BASE}
