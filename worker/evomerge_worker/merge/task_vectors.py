"""The family of task arithmetic: task vectors, thinned out, weighted, perhaps brought to agree on a sign.

The order is mergekit's: delta = model - base, sparsify, times weight, sign consensus, sum, normalize, times lambda,
plus base.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from evomerge_worker.merge.formula import Delta, Votes, WeightedSum
from evomerge_worker.merge.method import InputTensor, MergeMethod
from evomerge_worker.merge.sums import thinned_norms
from evomerge_worker.merge.thinning import AtLeast, Thinning

Thinned = tuple[Thinning, float]
"""What is kept of a task vector, and what it is multiplied by so that its L1 norm stays (as mergekit does, where DARE
divides by the density)."""
Sparsify = Callable[[Sequence[InputTensor], Tensor, bool], Sequence[Thinned]]
"""(sources, base, rescale) to what becomes of each source's task vector."""

NOTHING = AtLeast(float("inf"), 0)
"""No element is kept."""

_NO_WEIGHT = 1e-8  # weights that sum to less are not divided by
_TINY = 1e-7  # below this L1 norm nothing is rescaled


def family(sparsify: Sparsify, *, consensus: bool) -> MergeMethod:
    """The method that thins task vectors out by `sparsify` and, with `consensus`, elects a sign per element."""

    def merge(sources: Sequence[InputTensor], base: Tensor, shared: Mapping[str, float]) -> Votes | WeightedSum:
        taken = [source for source in sources if source.values["weight"] != 0]
        if not taken:
            return WeightedSum((base,), (1.0,))
        weights = [source.values["weight"] for source in taken]
        thinned = sparsify(taken, base, bool(shared["rescale"]))
        deltas = (
            Delta(source.tensor, weight, weight * scale, thinning)
            for source, weight, (thinning, scale) in zip(taken, weights, thinned, strict=True)
        )
        divided = shared["normalize"] and not consensus and abs(sum(weights)) >= _NO_WEIGHT
        return Votes(
            base,
            tuple(deltas),
            consensus=consensus,
            normalize=bool(shared["normalize"]) and consensus,
            divisor=sum(weights) if divided else 1.0,
            lambda_=shared["lambda"],
        )

    return merge


def whole(sources: Sequence[InputTensor], base: Tensor, rescale: bool) -> list[Thinned]:
    """All of the task vectors."""
    return [(None, 1.0)] * len(sources)


def restoring(before: float, after: float) -> float:
    """What restores the L1 norm `before` of a task vector whose rest has the norm `after`."""
    return before / after if min(before, after) >= _TINY else 1.0


def rescaled(source: InputTensor, base: Tensor, thinning: Thinning, rescale: bool) -> Thinned:
    """What is kept, and, if it is to be restored, what restores the L1 norm."""
    if thinning is None or not rescale:
        return thinning, 1.0
    return thinning, restoring(*thinned_norms(Delta(source.tensor, 1.0, 1.0, thinning), base))
