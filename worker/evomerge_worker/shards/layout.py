"""Where a model's tensors stand: before, in or after its layers, told by their names and not by a list of models."""

import math
import re
from collections import Counter
from collections.abc import Mapping

from evomerge_contract.report import Layout

_NUMBERED = re.compile(r"^((?:[^.]*[^.\d][^.]*\.)*?)(\d+)\.(.+)$")  # the outermost number: experts lie deeper
_BEFORE = re.compile(
    r"embed|(?<![a-z])(wte|wpe|pe)\b|position|token_type|rotary|project_in|vision|visual|image|audio", re.IGNORECASE
)
_AFTER = re.compile(r"embed_out|unembed", re.IGNORECASE)


def layout_of(tensors: Mapping[str, tuple[int, ...]]) -> Layout:
    """The layout of a model with these tensors (name to shape).

    The layers are the numbered modules (`<prefix><i>.…`) that hold most of the parameters: a vision tower or the
    experts inside a layer do not count. Layers may differ: `layer_tensors` holds whatever any of them has.
    Outside the layers, what embeds comes before them, and norms, heads and everything else after; other towers come
    before, since they feed the layers.

    Raises:
        ValueError: there are no numbered modules, or their numbers have gaps.
    """
    sizes: Counter[str] = Counter()
    parts: dict[str, tuple[str, int, str]] = {}
    for name, shape in tensors.items():
        if match := _NUMBERED.match(name):
            parts[name] = (match[1], int(match[2]), match[3])
            sizes[match[1]] += math.prod(shape)
    if not sizes:
        raise ValueError("no tensor belongs to a numbered layer (like model.layers.0.…)")
    prefix = max(sorted(sizes), key=lambda p: sizes[p])
    numbers = {number for its_prefix, number, _ in parts.values() if its_prefix == prefix}
    if gaps := set(range(max(numbers) + 1)) - numbers:
        raise ValueError(f"there is no tensor of layer {prefix}{min(gaps)}, though there are later layers")
    in_layers = {name: rest for name, (its_prefix, _, rest) in parts.items() if its_prefix == prefix}
    outside = sorted(set(tensors) - set(in_layers))
    before = [name for name in outside if name in parts or _comes_before(name)]
    return Layout(
        layer_prefix=prefix,
        layers=len(numbers),
        layer_tensors=sorted(set(in_layers.values())),
        before=before,
        after=[name for name in outside if name not in set(before)],
    )


def _comes_before(name: str) -> bool:
    return bool(_BEFORE.search(name)) and not _AFTER.search(name)
