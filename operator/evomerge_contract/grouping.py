"""Whether a manifest's `groups` fit the models: asked where the layout is found, and where the space is made of it."""

import re
from collections.abc import Iterator

from evomerge_contract.manifest import Groups
from evomerge_contract.report import Layout


def misplaced(groups: Groups, layout: Layout) -> Iterator[tuple[str, str]]:
    """Each field of `groups` that the models' tensors have no place for, with what is wrong."""
    if groups.layers is not None and groups.layers > layout.layers:
        yield "layers", f"{groups.layers} is more blocks than the models have layers ({layout.layers})"
    left = set(tensors_of(layout))
    for index, pattern in enumerate(groups.patterns or []):
        matched = {tensor for tensor in left if re.search(pattern.regex, tensor)}
        if not matched:
            example = min(left, default="none is left")
            yield (
                f"patterns[{index}].regex",
                f'pattern {pattern.name}: no tensor is left that "{pattern.regex}" matches (names are like {example}); '
                "mend it, or leave the pattern out",
            )
        left -= matched


def tensors_of(layout: Layout) -> Iterator[str]:
    """Every tensor of the models, by name."""
    yield from layout.before
    for layer in range(layout.layers):
        yield from (f"{layout.layer_prefix}{layer}.{tensor}" for tensor in layout.layer_tensors)
    yield from layout.after
