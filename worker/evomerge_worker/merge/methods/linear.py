"""Linear: the weighted mean of the sources, or their weighted sum (model soups, arXiv 2203.05482)."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from evomerge_worker.errors import CandidateError
from evomerge_worker.merge.formula import WeightedSum
from evomerge_worker.merge.method import InputTensor
from evomerge_worker.merge.sums import weight_sum

_ONE = 1e-9  # decimals that sum to one do so only nearly in binary


def merge(sources: Sequence[InputTensor], base: Tensor, shared: Mapping[str, float]) -> WeightedSum:
    """sum(weight_i * x_i), the weights divided by sum(weight_i) when `normalize`.

    Raises:
        CandidateError: the weights to divide by sum to zero.
    """
    total = 1.0
    if shared["normalize"]:
        total = weight_sum([source.values["weight"] for source in sources])
        if total == 0:
            raise CandidateError("NotFinite", "the weights sum to zero, and normalize divides by their sum")
    divisor = 1.0 if abs(total - 1) < _ONE else total
    taken = [source for source in sources if source.values["weight"] != 0] or sources[:1]
    weights = (source.values["weight"] / divisor for source in taken)
    return WeightedSum(tuple(source.tensor for source in taken), tuple(weights))
