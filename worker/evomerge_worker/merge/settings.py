"""What a parameter's setting in a recipe means for one tensor: scalars, filters, gradients, as mergekit has them."""

import math
from collections.abc import Callable, Iterable, Iterator

from evomerge_contract.filters import value_for
from evomerge_contract.methods import Method, Range
from evomerge_contract.recipe import Filtered, Parameters, Setting

ParameterValue = float | bool
Convert = Callable[[ParameterValue], ParameterValue]


def resolve(
    name: str, scopes: Iterable[Parameters | None], tensor: str, t: float, convert: Convert
) -> ParameterValue | None:
    """The value of parameter `name` for `tensor`: of the first scope that has one; None if none does.

    `t` is the place in a gradient, from 0 at a slice's first layer to 1 at its last. `convert` gives the value its type
    (float or bool) before anything is interpolated.
    """
    for scope in scopes:
        if scope is not None and name in scope:
            value = _evaluate(scope[name], tensor, t, convert)
            if value is not None:
                return value
    return None


def _evaluate(setting: Setting, tensor: str, t: float, convert: Convert) -> ParameterValue | None:
    value = value_for(setting, tensor)
    if isinstance(value, list):
        return _interpolate([convert(v) for v in value], t)
    return None if value is None else convert(value)


def _interpolate(values: list[ParameterValue], t: float) -> ParameterValue:
    """The gradient `values` at `t`; switches jump where numbers slide."""
    place = t * (len(values) - 1)
    low = int(place)
    if isinstance(values[0], bool):
        return values[low]
    high = min(len(values) - 1, low + 1)
    part = place - low
    return (1 - part) * values[low] + part * values[high]


def to_float(value: ParameterValue) -> float:
    """A real parameter's value."""
    return float(value)


def to_bool(value: ParameterValue) -> bool:
    """A switch's value."""
    return bool(value)


def mistakes(
    settings: Parameters | None, method_name: str, method: Method, where: str, *, for_all: bool = True
) -> Iterator[tuple[str, str]]:
    """Every mistake in the settings at `where`, as (path, message): unknown parameters, values out of range.

    `for_all`: they are those of a slice or a whole recipe, not of one of the models.
    """
    of_model = method.per_model | method.unused
    known = of_model | method.shared | method.numerics | dict.fromkeys(method.switches)
    for name, setting in (settings or {}).items():
        path = f"{where}.parameters.{name}"
        if name not in known:
            yield path, f"{method_name} has no parameter {name}; it has {', '.join(sorted(known))}"
            continue
        if not for_all and name not in of_model:
            yield path, f"{name} has one value for all models; give it in the parameters of the slice or of the recipe"
        for value in _values(setting):
            if message := _wrong_value(name, value, known[name]):
                yield path, message


def _values(setting: Setting) -> Iterator[ParameterValue]:
    if not isinstance(setting, list):
        yield setting
        return
    for part in setting:
        yield from _values(part.value) if isinstance(part, Filtered) else (part,)


def _wrong_value(name: str, value: ParameterValue, allowed: Range | None) -> str | None:
    if allowed is None:
        return None if value in (0, 1) else f"{value:g} is neither true nor false"
    if not math.isfinite(value):
        return f"{value} is not a finite number"
    if allowed.whole and not float(value).is_integer():
        return f"{value:g} is not a whole number"
    if allowed.low is not None and value < allowed.low:
        return f"{value:g} is below {allowed.low:g}, the smallest {name}"
    if allowed.high is not None and value > allowed.high:
        return f"{value:g} is above {allowed.high:g}, the largest {name}"
    return None
