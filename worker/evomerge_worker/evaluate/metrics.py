"""From item scores to a figure."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from evomerge_contract.metrics import METRICS, MetricName
from evomerge_contract.report import ItemScore
from evomerge_worker.errors import CandidateError

Scorer = Callable[[Any], list[ItemScore]]
"""Prepared items: takes a causal language model of transformers, gives the items' scores in their order."""


def aggregate(metric: MetricName, scores: Sequence[ItemScore]) -> float:
    """sum(value) / sum(count), or the exponential of that, as the metric's `aggregate` says.

    Raises:
        CandidateError: the figure is not finite.
    """
    try:
        ratio = math.fsum(score.value for score in scores) / math.fsum(score.count for score in scores)
        figure = math.exp(ratio) if METRICS[metric].aggregate == "exp" else ratio
    except (OverflowError, ValueError):  # a sum of infinities, or an exponential beyond the largest number
        figure = math.inf
    if not math.isfinite(figure):
        raise CandidateError("NotFinite", f"its {metric} is not finite")
    return figure
