"""The data-flow space of a stage (arXiv 2403.13187, section 3.2): which layers of the models, in which order.

All layers of all models in order, so many times one after the other, are the slots; the path is the donor's first
layer, the slots that are in, and the donor's last layer. A hop's scale multiplies the input of its layer. It is folded
into weights: with c the product of the scales up to a layer, what the layer adds to the stream is divided by c, which
leaves the stream itself unscaled, and the final norm takes the last c away.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import NamedTuple

from evomerge_contract.base import GRID_DECIMALS
from evomerge_contract.candidate import Genome
from evomerge_contract.filters import names
from evomerge_contract.manifest import FLOW_GENES, SLOTS, DataFlowSpace, Depth, EvoMergeSpec, Scales
from evomerge_contract.recipe import DTypeName, Filtered, Parameters, Recipe, Setting, Slice, SliceSource
from evomerge_contract.report import Flow, Layout
from evomerge_operator.search import Gene
from evomerge_operator.spaces.setting import setting

FLIPS = 2.0
"""Slots in which one of the first candidates differs from the donor's own path, on average."""
MOST_FLIPPED = 0.25  # of few slots
SPREAD = 1 / 6
"""The standard deviation of a gene in the first candidates, as a share of its range (arXiv 2403.13187)."""
PRODUCTS = (1e-30, 1e30)
"""The product of scales is held between these: float32 and bfloat16 have it and its inverse."""


class Layer(NamedTuple):
    """A layer of a model, counted from 0."""

    model: str
    number: int


@dataclass(frozen=True)
class Folding:
    """How a product of scales goes into the tensors of a layer.

    `powers` are the filters of a recipe with the power of the product that a tensor is multiplied by: 0, -1 or 1.
    `origin` is the recipe's setting for what tensors are scaled about: 0.0, or filters.
    """

    powers: tuple[tuple[str | None, float], ...]
    origin: Setting

    def parameters(self, product: float) -> Parameters | None:
        """The parameters of a slice whose layers have this product of scales."""
        if product == 1:
            return None
        value = {0.0: 1.0, -1.0: 1 / product, 1.0: product}
        scale = [Filtered(filter=tensors, value=value[power]) for tensors, power in self.powers]
        return {"scale": scale} | ({"scale_origin": self.origin} if self.origin else {})


@dataclass(frozen=True)
class ResolvedDataFlowSpace:
    """A manifest's data-flow space over models whose layers are known: `layers` in order, the donor's first.

    Its genes are the slots (`repeats` times `layers`), then the scales. A slot is in where its gene is positive: a
    binary gene is 1 then, a relaxed one a real number between -1 and 1.
    """

    layers: tuple[Layer, ...]
    repeats: int
    scales: Scales | None
    depth: Depth
    folding: Folding
    genes: tuple[Gene, ...]
    relaxed: bool
    dtype: DTypeName
    vocabulary: str | None = None
    chat_template: str | None = None
    config: str | None = None

    @property
    def donor(self) -> str:
        """Whose embeddings, final norm, head, config, tokenizer, first and last layer the results have."""
        return self.layers[0].model

    @property
    def slots(self) -> tuple[Layer, ...]:
        """What lies in each slot."""
        return self.layers * self.repeats

    @property
    def inner(self) -> tuple[int, int]:
        """How many slots may be in, at least and at most."""
        count = len(self.layers) * self.repeats
        return self.depth.min - 2, min(self.depth.max - 2, count)

    @property
    def ones(self) -> tuple[int, int] | None:
        """Relaxed genes are no ones: `decode` sees to the depth."""
        return None if self.relaxed else self.inner

    @property
    def deepest(self) -> int:
        """With the donor's first and last layer."""
        return self.inner[1] + 2

    @property
    def summary(self) -> str:
        """Its dimensions, slots and depths."""
        models = len(dict.fromkeys(layer.model for layer in self.layers))
        times = f", {self.repeats} times" if self.repeats > 1 else ""
        said = f"{len(self.slots)} slots ({len(self.layers)} layers of {models} model{'s'[: models > 1]}{times})"
        if self.scales is not None:
            said += f" and {len(self.genes) - len(self.slots)} scales (per {self.scales.per})"
        return f"{len(self.genes)} dimensions: {said}; a candidate has {self.inner[0] + 2} to {self.deepest} layers"

    def decode(self, genome: Genome) -> Recipe:
        """The recipe of a genome: consecutive layers of a model with the same product of scales share a slice."""
        if len(genome) != len(self.genes):
            raise ValueError(f"a genome of {len(genome)} genes for a space of {len(self.genes)}")
        runs: list[tuple[Layer, int, float]] = []  # the first layer, how many, the product of scales
        for layer, product in self._path(genome):
            if runs:
                first, length, before = runs[-1]
                if (first.model, first.number + length, before) == (*layer, product):
                    runs[-1] = (first, length + 1, product)
                    continue
            runs.append((layer, 1, product))
        return Recipe(
            merge_method="passthrough",
            slices=[self._slice(*run) for run in runs],
            base_model=self.donor,  # without it mergekit takes config and tokenizer of any model
            dtype="float32",
            out_dtype=self.dtype,
            tokenizer_source=self.vocabulary,
            chat_template=self.chat_template,
            config_source=self.config,
        )

    def chosen(self, genome: Genome) -> list[int]:
        """The slots that are in, in order; too many or too few: those with the highest genes, the earlier of equals."""
        fewest, most = self.inner
        values = genome[: len(self.slots)]
        count = min(max(sum(value > 0 for value in values), fewest), most)
        return sorted(sorted(range(len(values)), key=lambda slot: (-values[slot], slot))[:count])

    def _path(self, genome: Genome) -> list[tuple[Layer, float]]:
        """Every layer of the path, with the product of the scales of its hop and those before it."""
        slots, chosen = self.slots, self.chosen(genome)
        path = [self.layers[0], *(slots[slot] for slot in chosen), self._closing]
        hops = [1.0] * (len(path) - 1)
        scales = genome[len(slots) :]
        if self.scales is not None and self.scales.per == "Slot":
            hops = [scales[slot] for slot in (*chosen, len(slots))]
        elif self.scales is not None:
            number = {layer: i for i, layer in enumerate(self.layers)}
            hops = [scales[number[before] * len(number) + number[after]] for before, after in pairwise(path)]
        products = [1.0]
        for hop in hops:
            products.append(min(max(products[-1] * hop, PRODUCTS[0]), PRODUCTS[1]))
        return list(zip(path, products, strict=True))

    @property
    def _closing(self) -> Layer:
        return [layer for layer in self.layers if layer.model == self.donor][-1]

    def _slice(self, first: Layer, length: int, product: float) -> Slice:
        source = SliceSource(
            model=first.model,
            layer_range=(first.number, first.number + length),
            parameters=self.folding.parameters(product),
        )
        return Slice(sources=[source])


def make_data_flow_space(
    space: DataFlowSpace, pool: Sequence[str], spec: EvoMergeSpec, layout: Layout, dtype: DTypeName, *, relaxed: bool
) -> ResolvedDataFlowSpace:
    """The space over the models that it names, or those of `pool`, once their layout is known.

    `relaxed`: a slot is a real gene instead of a binary one.

    Raises:
        ValueError: too many slots or genes, no inner layers, or a depth that no path can have.
    """
    if layout.flow is None:
        raise ValueError("what was prepared does not say how layers of these models follow each other; prepare it anew")
    depths = {model: layout.flow.layers[model] for model in space.models or pool}
    layers = tuple(Layer(model, number) for model, depth in depths.items() for number in range(depth))
    donor = layers[0].model
    _check(space, donor, depths, len(layers))
    genes = _slot_genes(layers, space.repeats, depths[donor], relaxed=relaxed)
    if space.scales is not None:
        genes += _scale_genes(space.scales, genes, layers, depths[donor])
    asked = (spec.tokenizer_source, spec.chat_template, spec.config_source)
    return ResolvedDataFlowSpace(
        layers, space.repeats, space.scales, space.layers, _folding(layout, layout.flow), genes, relaxed, dtype, *asked
    )


def _check(space: DataFlowSpace, donor: str, depths: Mapping[str, int], layers: int) -> None:
    slots = layers * space.repeats
    genes = slots + (0 if space.scales is None else slots + 1 if space.scales.per == "Slot" else layers**2)
    if depths[donor] < 2:
        raise ValueError(f"{donor} has one layer; a donor needs one that opens the path and another that closes it")
    if slots > SLOTS:
        times = f"{space.repeats} times " if space.repeats > 1 else ""
        fewer = "fewer models or repeats" if space.repeats > 1 else "fewer models"
        raise ValueError(f"{times}{layers} layers are {slots} slots, more than {SLOTS}; choose {fewer}")
    if genes > FLOW_GENES:
        raise ValueError(
            f"scales per Pair of {layers} layers make {genes} genes, more than {FLOW_GENES}; choose scales.per: Slot, "
            "or fewer models"
        )
    if space.layers.min > slots + 2:
        raise ValueError(
            f"layers.min {space.layers.min} is deeper than any candidate can be: {slots} slots and the donor's first "
            f"and last layer make {slots + 2} layers"
        )


def _slot_genes(layers: Sequence[Layer], repeats: int, donor_layers: int, *, relaxed: bool) -> tuple[Gene, ...]:
    """Start at the donor's own path: its inner layers are in, all other slots out.

    Of a relaxed gene the start lies so far from 0 that a first sample crosses it as often as a binary one is flipped.
    """
    count = len(layers) * repeats
    flipped = min(FLIPS / count, MOST_FLIPPED)
    margin = round(2 * SPREAD * NormalDist().inv_cdf(1 - flipped), GRID_DECIMALS)
    genes = []
    for slot in range(count):
        layer, own = layers[slot % len(layers)], 0 < slot < donor_layers - 1
        group = _place(slot, layer, slot // len(layers) + 1, repeats)
        if relaxed:
            genes.append(Gene("slot", group, layer.model, -1, 1, margin if own else -margin, spread=SPREAD))
        else:
            genes.append(Gene("slot", group, layer.model, 0, 1, float(own), kind="binary", spread=flipped))
    return tuple(genes)


def _scale_genes(scales: Scales, slots: Sequence[Gene], layers: Sequence[Layer], donor_layers: int) -> tuple[Gene, ...]:
    """Start at 1. The product over as many hops as the donor has layers spreads at first as a gene usually does."""
    bounds = (float(scales.min), float(scales.max), 1.0)
    spread = SPREAD / math.sqrt(donor_layers)
    if scales.per == "Pair":
        pairs = [f"{a.model}:{a.number}-{b.model}:{b.number}" for a in layers for b in layers]
        return tuple(Gene("scale", pair, None, *bounds, spread=spread) for pair in pairs)
    closing = (f"closing-layer-{donor_layers - 1}", layers[0].model)
    hops = [*((gene.group, gene.model) for gene in slots), closing]
    return tuple(Gene("scale", group, model, *bounds, spread=spread) for group, model in hops)


def _place(slot: int, layer: Layer, repeat: int, repeats: int) -> str:
    """What people call a slot; its model is said beside it."""
    return f"{slot}-layer-{layer.number}" + (f"-repeat-{repeat}" if repeats > 1 else "")


def _folding(layout: Layout, flow: Flow) -> Folding:
    """Filters that tell a layer's tensors apart, whichever layer it is, and from all tensors outside."""
    powers = dict.fromkeys(flow.divided, -1.0) | dict.fromkeys(flow.multiplied, 1.0)
    power = _in_any_layer(layout, powers)
    filters = power if isinstance(power, list) else []
    return Folding(
        tuple((entry.filter, float(str(entry.value))) for entry in filters if isinstance(entry, Filtered)),
        _in_any_layer(layout, flow.about),
    )


def _in_any_layer(layout: Layout, values: Mapping[str, float]) -> Setting:
    """The setting that gives tensors of a layer these values, by either name, and 0.0 the others and all outside."""
    needed = dict.fromkeys((layout.layer_prefix, *layout.before, *layout.after), 0.0)
    for tensor in layout.layer_tensors:
        called = (name.removeprefix(".") for name in names(f".{tensor}"))
        needed[f".{tensor}"] = next((values[name] for name in called if name in values), 0.0)
    return setting({tensor: str(value) for tensor, value in needed.items()}, {str(v): v for v in needed.values()})
