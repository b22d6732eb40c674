"""How large the result of a recipe is."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from evomerge_contract.recipe import Recipe

if TYPE_CHECKING:
    from evomerge_worker.shards import Checkpoint


class Size(NamedTuple):
    """Layers and parameters, and how many of these a token passes through: all but a table that its row is looked up
    in."""

    layers: int
    parameters: int
    per_token: int


def size_of(recipe: Recipe, checkpoints: Mapping[str, "Checkpoint"], *, trust_remote_code: bool) -> Size:
    """The size of what a recipe makes of its sources. Of experts all count, however few a token meets.

    Raises:
        InputError: it cannot be carried out over them.
    """
    from evomerge_worker.merge.plan import anchor_of, plan_merge
    from evomerge_worker.merge.slices import sliced
    from evomerge_worker.merge.vocabulary import Vocabularies
    from evomerge_worker.shards.token_rows import row_tensors

    aligned = Vocabularies(trust_remote_code=trust_remote_code).aligned(recipe, checkpoints)
    plans = plan_merge(recipe, aligned)
    numbers = {plan.name: math.prod(aligned[plan.like.model].shape(plan.like.tensor)) for plan in plans}
    anchor = aligned[anchor_of(recipe)]
    tables = [name for name in row_tensors(anchor) if name in anchor.layout.before]
    has_head = any(name in numbers for name in row_tensors(anchor) if name in anchor.layout.after)
    looked_up = sum(numbers.get(name, 0) for name in tables) if has_head else 0  # a tied table is the head too
    slices = sliced(recipe, {name: checkpoint.layout.layers for name, checkpoint in aligned.items()})
    layers = sum(one.sources[0].layer_range[1] - one.sources[0].layer_range[0] for one in slices)
    total = sum(numbers.values())
    return Size(layers, total, total - looked_up)
