"""The parameters of a recipe: what each has for a tensor, from the slice source to the whole recipe."""

from evomerge_contract.methods import METHODS
from evomerge_contract.recipe import Filtered, Parameters, Recipe, Slice, SliceSource
from evomerge_worker.merge.settings import ParameterValue, resolve, to_bool, to_float

_Scopes = tuple[Parameters | None, ...]
"""Where a parameter is looked for, in this order."""


class TensorParameters:
    """The values of a recipe's parameters for tensors; where no filter asks for names, a layer's tensors share them.

    `mistakes`: what has no value, or one that makes no sense, by its path.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.mistakes: dict[str, str] = {}
        self._recipe = recipe
        self._method = METHODS[recipe.merge_method]
        # By slice, source and place in gradients; slices and sources are there for as long as this is.
        self._per_model: dict[tuple[int, int, float], dict[str, float]] = {}
        self._shared: dict[tuple[int, float], dict[str, ParameterValue]] = {}

    def per_model(self, one: Slice, t: float, source: SliceSource, tensor: str) -> dict[str, float]:
        """Those of `source` in the slice `one` for its `tensor`, at `t` of a gradient."""
        key = (id(one), id(source), t)
        if key in self._per_model:
            return self._per_model[key]
        scopes = (source.parameters, one.parameters, self._recipe.parameters)
        values = self._of_model(scopes, source.model, tensor, t)
        if not _filtered(scopes):
            self._per_model[key] = values
        return values

    def shared(self, one: Slice, t: float, tensor: str) -> dict[str, ParameterValue]:
        """Those that are not per model, for a `tensor` of the result."""
        key = (id(one), t)
        if key in self._shared:
            return self._shared[key]
        scopes = (one.parameters, self._recipe.parameters)
        values = self._of_all(scopes, tensor, t)
        if not _filtered(scopes):
            self._shared[key] = values
        return values

    def _of_model(self, scopes: _Scopes, model: str, tensor: str, t: float) -> dict[str, float]:
        method = self._method
        values: dict[str, float] = {}
        for name in method.per_model:
            value = self._value(name, scopes, tensor, t)
            if value is None:
                message = f"{self._recipe.merge_method} needs a {name} for {model} at {tensor}"
                self.mistakes.setdefault(f"recipe.{name}[{model}]", message)
            values[name] = float(value or 0.0)
        if method.margin is not None:
            name, margin = method.margin
            if 0 < values[name] < 1 and not (values[name] - values[margin] > 0 and values[name] + values[margin] < 1):
                given = f"{name} {values[name]:g} and {margin} {values[margin]:g} for {model} at {tensor}"
                rule = f"{name} - {margin} must be above 0 and {name} + {margin} below 1"
                self.mistakes.setdefault(f"recipe.{name}[{model}]", f"{given}: {rule}")
        return values

    def _of_all(self, scopes: _Scopes, tensor: str, t: float) -> dict[str, ParameterValue]:
        values: dict[str, ParameterValue] = {}
        for name, allowed in (self._method.shared | self._method.numerics).items():
            value = self._value(name, scopes, tensor, t)
            if value is None:
                self.mistakes.setdefault(f"recipe.{name}", f"{self._recipe.merge_method} needs a {name} at {tensor}")
            elif allowed.whole and not float(value).is_integer():
                self.mistakes.setdefault(f"recipe.{name}", f"{name} is {value:g} at {tensor}, not a whole number")
            values[name] = float(value or 0.0)
        for name, default in self._method.switches.items():
            switch = resolve(name, scopes, tensor, t, to_bool)
            values[name] = default if switch is None else switch
        return values

    def _value(self, name: str, scopes: _Scopes, tensor: str, t: float) -> ParameterValue | None:
        value = resolve(name, scopes, tensor, t, to_float)
        return self._method.defaults.get(name) if value is None else value


def _filtered(scopes: _Scopes) -> bool:
    """Whether a setting in one of them depends on tensors' names."""
    settings = (setting for scope in scopes if scope for setting in scope.values() if isinstance(setting, list))
    return any(isinstance(part, Filtered) for setting in settings for part in setting)
