"""The shortest setting of a recipe that gives each tensor its value."""

from collections import Counter
from collections.abc import Mapping

from evomerge_contract.filters import names
from evomerge_contract.recipe import Filtered, Setting


def setting(group_of: Mapping[str, str], values: Mapping[str, float]) -> Setting:
    """The shortest setting that gives every tensor its group's value: a scalar, or filters with a default last.

    A tensor that has another name in memory gets it by either: mergekit has one of them, and passes over the other.
    """
    needed = {tensor: values[group] for tensor, group in group_of.items()}
    if len(set(needed.values())) == 1:
        return next(iter(needed.values()))
    default = Counter(needed.values()).most_common(1)[0][0]
    called = {name: value for tensor, value in needed.items() for name in names(tensor)}
    odd = {name: value for name, value in called.items() if value != default}
    chosen: dict[str, float] = {}
    for name, value in odd.items():
        if not any(f in name and v == value for f, v in chosen.items()):
            chosen[_filter_for(name, value, called)] = value
    return [Filtered(filter=f, value=v) for f, v in chosen.items()] + [Filtered(value=default)]


def _filter_for(tensor: str, value: float, called: Mapping[str, float]) -> str:
    """A substring of a tensor's name that no name of another value contains: a module's name if possible."""
    modules = [part for part in tensor.split(".") if not part.isdigit()]
    for candidate in (*modules, tensor.rsplit(".", 1)[0], tensor):
        if all(v == value for t, v in called.items() if candidate in t):
            return candidate
    raise ValueError(f"tensor {tensor} cannot be told from others by a filter: its name is part of theirs")
