"""Layers in another order than any source has them: built once, and stacked anew for each candidate."""

import gc
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evomerge_worker.families.slots import live_names
from evomerge_worker.merge.fit import is_computed
from evomerge_worker.merge.layers import Kind
from evomerge_worker.merge.plan import TensorPlan
from evomerge_worker.merge.run import Merger
from evomerge_worker.shards import Checkpoint

_COSMETIC = ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype")
"""What a config says that no module reads, or that the weights say."""
_Shell = dict[str, tuple[Any, str]]
"""A layer without weights: for each of its parameters the module that holds it, and its name there."""


class Stack:
    """A model whose layers are taken out and put in.

    A layer is built once for each place and kind. What a candidate takes from a source as it is, are the mapped tensors
    of that source (on a device, a copy of each); what it scales or mixes is written, to memory that the place keeps.
    """

    def __init__(
        self,
        model: Any,
        path: str,
        prefix: str,
        plans: Sequence[TensorPlan],
        kinds: Sequence[Kind],
        dtype: torch.dtype,
    ) -> None:
        """`model` has been loaded for `plans` and layers of these kinds; it is taken over. They are at `path` in it,
        and on disk their names begin with `prefix`."""
        self.model = model
        self.dtype = dtype
        self._prefix = prefix
        self._path = path
        self._sort = _sort(prefix, plans, kinds)
        state = model.state_dict(keep_vars=True)
        self._outside = {name: tensor for name, tensor in state.items() if not name.startswith(f"{self._path}.")}
        self._layers: dict[tuple[int, str], tuple[Any, _Shell]] = {}
        self._own: dict[tuple[int, str], Tensor] = {}
        self._copies: dict[tuple[Checkpoint, str], Tensor] = {}
        self._copied: list[tuple[TensorPlan, Checkpoint]] = []  # what is outside the layers, if all of it is a copy
        self._hold([])
        gc.collect()  # modules refer to each other in circles, and the weights of these are not needed

    def suits(self, plans: Sequence[TensorPlan], kinds: Sequence[Kind], dtype: torch.dtype) -> bool:
        """Whether the model outside its layers is that of these plans: such tensors, and such kinds of layers."""
        return self._sort == _sort(self._prefix, plans, kinds) and self.dtype == dtype

    def put(
        self,
        plans: Sequence[TensorPlan],
        config: Any,
        kinds: Sequence[Kind],
        checkpoints: Mapping[str, Checkpoint],
        merger: Merger,
    ) -> None:
        """Make the model that of `plans`, whose `config` has layers of these `kinds`.

        Raises:
            CandidateError: the result is not finite. The model is then unusable until the next one is put in place.
        """
        layers, outside = _by_layer(plans, self._prefix)
        written: dict[str, Tensor] = {}
        stacked = []
        for place, kind in enumerate(kinds):
            layer, shell = self._layer(place, repr(kind), config, kinds)
            for rest, (module, name) in shell.items():
                plan = layers[place][rest]
                tensor = self._as_it_is(plan, checkpoints)
                if tensor is None:
                    tensor = written[plan.name] = self._memory(place, rest, merger.shape(plan))
                module._parameters[name] = torch.nn.Parameter(tensor, requires_grad=False)
            stacked.append(layer)
        copied = [(plan, checkpoints[plan.like.model]) for plan in outside if _of_one(plan)]
        if len(copied) < len(outside) or copied != self._copied:
            self._copied = []
            written |= {plan.name: self._place_of(plan.name) for plan in outside}
        merger.merge_all(plans, written)
        self._copied = copied
        self._hold(stacked)
        self._configure(config)

    def _hold(self, layers: Sequence[Any]) -> None:
        above, _, last = self._path.rpartition(".")
        setattr(self.model.get_submodule(above), last, torch.nn.ModuleList(layers).eval())

    def _configure(self, config: Any) -> None:
        """Let the model's config say of its layers what `config` does: all modules outside them hold that object."""
        ours, theirs = (one.get_text_config(decoder=True) for one in (self.model.config, config))
        before = ours.to_dict()
        for key, value in theirs.to_dict().items():
            if key not in _COSMETIC and before.get(key) != value:
                setattr(ours, key, value)

    def _layer(self, place: int, kind: str, config: Any, kinds: Sequence[Kind]) -> tuple[Any, _Shell]:
        """The layer for a place and a kind; where there is none, those of a whole model of that config are taken."""
        if (place, kind) not in self._layers:
            with torch.device("meta"):
                attention = self.model.config._attn_implementation
                model = type(self.model)._from_config(config, attn_implementation=attention)
            for number, layer in enumerate(model.get_submodule(self._path)):
                self._layers.setdefault((number, repr(kinds[number])), (layer.eval(), _shell(layer)))
        return self._layers[place, kind]

    def _as_it_is(self, plan: TensorPlan, checkpoints: Mapping[str, Checkpoint]) -> Tensor | None:
        """The tensor of a source that a plan takes without changing a bit; None where it does."""
        if not _of_one(plan) or plan.inputs[0].values.get("scale", 1) != 1:
            return None
        source = plan.inputs[0]
        checkpoint = checkpoints[source.model]
        if not checkpoint.dtype(source.tensor) == plan.dtype == self.dtype:
            return None
        if self.model.device.type == "cpu":
            return checkpoint.tensor(source.tensor)
        key = (checkpoint, source.tensor)
        if key not in self._copies:
            self._copies[key] = checkpoint.tensor(source.tensor).to(self.model.device)
        return self._copies[key]

    def _memory(self, place: int, rest: str, shape: tuple[int, ...]) -> Tensor:
        if (place, rest) not in self._own:
            self._own[place, rest] = torch.empty(shape, dtype=self.dtype, device=self.model.device)
        return self._own[place, rest]

    def _place_of(self, name: str) -> Tensor:
        tensor: Tensor = next(self._outside[its] for its in live_names(self.model, name) if its in self._outside)
        return tensor


def stack_of(
    model: Any, prefix: str, plans: Sequence[TensorPlan], kinds: Sequence[Kind], dtype: torch.dtype
) -> Stack | None:
    """A stack of the layers of `model`, which has been loaded for `plans` and layers of these kinds.

    None where layers cannot be put in one by one: one does not hold just the tensors that are planned for it, under
    their names (fused experts, masks).
    """
    path = next((name for name in live_names(model, prefix.removesuffix(".")) if _is_list(model, name)), None)
    if path is None:
        return None
    layers, outside = _by_layer(plans, prefix)
    state = model.state_dict(keep_vars=True)
    if not all(any(name in state for name in live_names(model, plan.name)) for plan in outside):
        return None
    for place, layer in enumerate(model.get_submodule(path)):
        parameters = dict(layer.named_parameters())
        if parameters.keys() != {rest for rest in layers[place] if not is_computed(rest)} or list(layer.buffers()):
            return None
        if any(parameter.dtype != dtype for parameter in parameters.values()):
            return None
    return Stack(model, path, prefix, plans, kinds, dtype)


def _by_layer(plans: Sequence[TensorPlan], prefix: str) -> tuple[Mapping[int, dict[str, TensorPlan]], list[TensorPlan]]:
    """The plans of each layer by the names of tensors within it, and those outside the layers."""
    layers: defaultdict[int, dict[str, TensorPlan]] = defaultdict(dict)
    outside = []
    for plan in plans:
        number, _, rest = plan.name.removeprefix(prefix).partition(".")
        if plan.name.startswith(prefix) and number.isdecimal():
            layers[int(number)][rest] = plan
        else:
            outside.append(plan)
    return layers, outside


def _shell(layer: Any) -> _Shell:
    modules = dict(layer.named_modules())
    names = ((name, name.rpartition(".")) for name, _ in layer.named_parameters())
    return {name: (modules[module], last) for name, (module, _, last) in names}


def _is_list(model: Any, path: str) -> bool:
    try:
        return isinstance(model.get_submodule(path), torch.nn.ModuleList)
    except AttributeError:
        return False


def _of_one(plan: TensorPlan) -> bool:
    """Whether a tensor is that of one source, scaled or not."""
    return plan.method in (None, "passthrough")


def _sort(prefix: str, plans: Sequence[TensorPlan], kinds: Sequence[Kind]) -> tuple[frozenset[str], frozenset[str]]:
    """What a model outside its layers depends on: the tensors there, and of which kinds its layers are."""
    _, outside = _by_layer(plans, prefix)
    return frozenset(plan.name for plan in outside), frozenset(map(repr, kinds))
