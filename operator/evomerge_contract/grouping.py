"""Whether a manifest's `groups` fit the models: asked where the layout is found, and where the space is made of it."""

import re
from collections.abc import Iterator

from evomerge_contract.filters import names
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
        apart = _apart(matched, left)
        if apart is not None:
            yield f"patterns[{index}].regex", f'pattern {pattern.name}: "{pattern.regex}" matches {apart}'


def _apart(matched: set[str], left: set[str]) -> str | None:
    """Two tensors, one of each set, that are one in memory, where a filter cannot tell them apart."""
    others = {names(tensor)[-1]: tensor for tensor in sorted(left, reverse=True)}
    for tensor in sorted(matched):
        fused = names(tensor)[-1]
        if fused in others:
            return f"{tensor} and not {others[fused]}; both are one tensor to mergekit, {fused}: match both or neither"
    return None


def tensors_of(layout: Layout) -> Iterator[str]:
    """Every tensor of the models, by name."""
    yield from layout.before
    for layer in range(layout.layers):
        yield from (f"{layout.layer_prefix}{layer}.{tensor}" for tensor in layout.layer_tensors)
    yield from layout.after
