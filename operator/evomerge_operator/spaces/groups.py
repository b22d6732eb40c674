"""Groups of tensors that share their parameters: from a model's layout and a manifest's `groups`."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from evomerge_contract.grouping import misplaced
from evomerge_contract.manifest import Groups
from evomerge_contract.report import Layout
from evomerge_operator.rules import REST

EMBEDDINGS = "embeddings"
HEAD = "head"


@dataclass(frozen=True)
class SliceTensors:
    """The tensors whose parameters one single-layer slice of a recipe decides, each with its group.

    The first slice also decides for the tensors before the layers, the last for those after.
    """

    layer: int
    group_of: Mapping[str, str]


def slice_tensors(groups: Groups, layout: Layout) -> list[SliceTensors]:
    """Assign every tensor to a group, slice by slice.

    Raises:
        ValueError: more blocks than layers, or a pattern that no tensor is left for.
    """
    for _, message in misplaced(groups, layout):
        raise ValueError(message)
    name = _naming(groups, layout.layers)
    slices = []
    for layer in range(layout.layers):
        prefix = f"{layout.layer_prefix}{layer}."
        tensors = {prefix + t: name(prefix + t, layer, None) for t in layout.layer_tensors}
        before = {t: name(t, None, EMBEDDINGS) for t in layout.before} if layer == 0 else {}
        after = {t: name(t, None, HEAD) for t in layout.after} if layer == layout.layers - 1 else {}
        slices.append(SliceTensors(layer, before | tensors | after))
    return slices


def group_names(slices: list[SliceTensors]) -> list[str]:
    """The groups in the order in which the model meets them."""
    return list(dict.fromkeys(group for s in slices for group in s.group_of.values()))


_Naming = Callable[[str, int | None, str | None], str]  # tensor, its layer or None, its place outside the layers


def _naming(groups: Groups, layers: int) -> _Naming:
    if groups.patterns is not None:
        patterns = [(re.compile(p.regex), p.name) for p in groups.patterns]
        return lambda tensor, _layer, _place: next((n for r, n in patterns if r.search(tensor)), REST)
    if groups.components:
        return lambda tensor, _layer, place: _component(tensor, place)
    if groups.layers == 1:
        return lambda _tensor, _layer, _place: "all"
    blocks = groups.layers or layers

    def block(_tensor: str, layer: int | None, place: str | None) -> str:
        if layer is None:
            return place or REST
        return names[layer]

    names = _block_names(layers, blocks)
    return block


def _block_names(layers: int, blocks: int) -> list[str]:
    """The name of each layer's block, by its first and last layer; blocks differ in size by one layer at most."""
    members: dict[int, list[int]] = {}
    for layer in range(layers):
        members.setdefault(layer * blocks // layers, []).append(layer)
    names = {b: f"layer-{m[0]}" if len(m) == 1 else f"layers-{m[0]}-{m[-1]}" for b, m in members.items()}
    return [names[layer * blocks // layers] for layer in range(layers)]


_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_NORM = re.compile(r"norm|(^|\.)ln_", re.IGNORECASE)


def _component(tensor: str, place: str | None) -> str:
    """attention, mlp, norms or embeddings, by the tensor's name; an attention's own norms count as norms."""
    module = tensor.rsplit(".", 1)[0]
    if _NORM.search(module):
        return "norms"
    if place is not None:
        return EMBEDDINGS
    return "attention" if _ATTENTION.search(module) else "mlp"
