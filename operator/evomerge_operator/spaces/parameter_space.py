"""The parameter space of a stage: which genes there are, and the recipe that a genome means.

Decoding writes one slice per layer with scalars, and explicit filters where tensors of one slice belong to different
groups, never gradients: mergekit evaluates those at t = 0 for everything outside the layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge_contract.base import GRID_DECIMALS
from evomerge_contract.candidate import Genome
from evomerge_contract.manifest import BASE, EvoMergeSpec, Parameter, ParameterSpace
from evomerge_contract.methods import METHODS, Method
from evomerge_contract.recipe import DTypeName, Parameters, Recipe, Scalar, Slice, SliceSource
from evomerge_contract.report import Layout
from evomerge_operator.search import Gene
from evomerge_operator.spaces.groups import SliceTensors, group_names, slice_tensors
from evomerge_operator.spaces.setting import setting

_Values = dict[str, dict[str, dict[str, float]]]  # parameter -> group -> model ("" when shared) -> value


@dataclass(frozen=True)
class ResolvedParameterSpace:
    """A manifest's parameter space over the pool `models`, its groups resolved to tensors."""

    method: str
    models: tuple[str, ...]
    base: str | None
    dtype: DTypeName
    parameters: Mapping[str, Parameter]
    slices: tuple[SliceTensors, ...]
    genes: tuple[Gene, ...]
    vocabulary: str | None = None
    chat_template: str | None = None
    config: str | None = None

    @property
    def ones(self) -> None:
        """It has no binary genes."""

    @property
    def deepest(self) -> int:
        """Merges have as many layers as the models."""
        return len(self.slices)

    @property
    def summary(self) -> str:
        """Its dimensions and groups."""
        groups = list(dict.fromkeys(gene.group for gene in self.genes))
        shown = ", ".join(groups[:12]) + (", …" if len(groups) > 12 else "")
        return f"{len(self.genes)} dimensions over {len(groups)} groups: {shown}"

    def decode(self, genome: Genome) -> Recipe:
        """The recipe of a genome, with a slice for each layer."""
        values = self._values(genome)
        return Recipe(
            merge_method=self.method,
            slices=[self._slice(s, values) for s in self.slices],
            base_model=self.base,
            parameters=self._fixed() or None,
            dtype="float32",
            out_dtype=self.dtype,
            tokenizer_source=self.vocabulary,
            chat_template=self.chat_template,
            config_source=self.config,
        )

    def _values(self, genome: Genome) -> _Values:
        if len(genome) != len(self.genes):
            raise ValueError(f"a genome of {len(genome)} genes for a space of {len(self.genes)}")
        values: _Values = {}
        for gene, value in zip(self.genes, genome, strict=True):
            values.setdefault(gene.parameter, {}).setdefault(gene.group, {})[gene.model or ""] = value
        for name, parameter_groups in values.items():
            if self.parameters[name].sums_to_one:
                for group, by_model in parameter_groups.items():
                    parameter_groups[group] = sum_to_one(self.parameters[name], self.models, by_model)
        return values

    def _slice(self, tensors: SliceTensors, values: _Values) -> Slice:
        span = (tensors.layer, tensors.layer + 1)
        per_model = METHODS[self.method].per_model
        sources = [
            SliceSource(
                model=model,
                layer_range=span,
                parameters={
                    name: setting(tensors.group_of, {g: by_model[model] for g, by_model in groups.items()})
                    for name, groups in values.items()
                    if name in per_model
                }
                or None,
            )
            for model in self.models
        ]
        if self.base is not None and self.base not in self.models:
            sources.append(SliceSource(model=self.base, layer_range=span))
        shared = {
            name: setting(tensors.group_of, {g: by_model[""] for g, by_model in groups.items()})
            for name, groups in values.items()
            if name not in per_model
        }
        return Slice(sources=sources, parameters=shared or None)

    def _fixed(self) -> Parameters:
        return {name: _scalar(p.value) for name, p in self.parameters.items() if p.value is not None}


def make_parameter_space(
    space: ParameterSpace, pool: Sequence[str], spec: EvoMergeSpec, layout: Layout, dtype: DTypeName
) -> ResolvedParameterSpace:
    """The space over the models of `pool`, once their layout is known.

    Raises:
        ValueError: the groups do not fit the layout.
    """
    models = tuple(pool)
    slices = tuple(slice_tensors(space.groups, layout))
    groups = group_names(list(slices))
    method = METHODS[space.method]
    genes = [
        _gene(name, group, model, parameter, len(models))
        for name in method.real  # the method's order: that of the manifest's keys has no meaning
        if name in space.parameters and (parameter := space.parameters[name]).value is None
        for group in groups
        for model in (_genes_of(parameter, models) if name in method.per_model else (None,))
    ]
    base = _base_model(method, models, has_base=spec.base is not None)
    asked = (spec.tokenizer_source, spec.chat_template, spec.config_source)
    return ResolvedParameterSpace(space.method, models, base, dtype, space.parameters, slices, tuple(genes), *asked)


def _base_model(method: Method, models: tuple[str, ...], *, has_base: bool) -> str | None:
    """What a method sets out from is here the first source; what task vectors are taken from is the manifest's base."""
    if method.base == "start":
        return models[0]
    return BASE if method.needs_base or (method.base == "optional origin" and has_base) else None


def _genes_of(parameter: Parameter, models: tuple[str, ...]) -> tuple[str, ...]:
    return models[:-1] if parameter.sums_to_one else models


def _gene(name: str, group: str, model: str | None, parameter: Parameter, models: int) -> Gene:
    low, high = float(parameter.min or 0), float(parameter.max or 0)
    middle = 1 / models if parameter.sums_to_one else (low + high) / 2
    start = middle if parameter.start is None else float(parameter.start)
    return Gene(name, group, model, low, high, round(start, GRID_DECIMALS))


def sum_to_one(parameter: Parameter, models: Sequence[str], genes: Mapping[str, float]) -> dict[str, float]:
    """Values within the bounds that sum to one: each model in turn takes its gene as far as the rest leaves room."""
    low, high = float(parameter.min or 0), float(parameter.max or 0)
    values: dict[str, float] = {}
    left = 1.0
    for after, model in zip(range(len(models) - 1, 0, -1), models, strict=False):
        gene = min(max(genes[model], left - after * high), left - after * low)
        values[model] = _on_grid(gene)
        left = _on_grid(left - values[model])
    values[models[-1]] = left
    return values


def _on_grid(value: float) -> float:
    return round(value, GRID_DECIMALS) + 0.0  # + 0.0 makes -0.0 a plain zero


def _scalar(text: str | None) -> Scalar:
    return text == "true" if text in ("true", "false") else float(text or 0)
