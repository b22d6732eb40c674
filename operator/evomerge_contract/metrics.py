"""The metrics an objective may name: how items make its score, and how the score may be read.

What is particular to one metric stands in `METRICS`. Operator and worker ask the table; neither knows a metric's name.
"""

from dataclasses import dataclass
from typing import Literal, get_args

EvaluatorName = Literal["jsonl"]
EVALUATORS: tuple[EvaluatorName, ...] = get_args(EvaluatorName)
"""The evaluators by the fields of an `Objective` that they are."""
MetricName = Literal["exact_match", "acc", "acc_norm", "perplexity"]
Aggregate = Literal["ratio", "exp"]


@dataclass(frozen=True)
class Metric:
    """A metric of items that have a value and a count each (`ItemScore`).

    `aggregate` makes one score of many items: "ratio" is sum(value) / sum(count), "exp" is the exponential of that.
    `per_token`: a figure per token of the model's own tokenizer, which says nothing beside that of another tokenizer.
    `evaluators` are those whose objectives may name it.
    """

    aggregate: Aggregate = "ratio"
    lower_is_better: bool = False
    per_token: bool = False
    evaluators: tuple[EvaluatorName, ...] = ("jsonl",)


_SHARE = Metric()
"""A share of right answers. value: 1.0 (right) or 0.0; count: 1."""

METRICS: dict[MetricName, Metric] = {
    "exact_match": _SHARE,
    "acc": _SHARE,
    "acc_norm": _SHARE,
    # value: negative log-likelihood in nats; count: tokens
    "perplexity": Metric("exp", lower_is_better=True, per_token=True),
}


def metrics_of(evaluator: EvaluatorName, *, per_token: bool = True) -> list[MetricName]:
    """The metrics that objectives of an evaluator may name; without `per_token`, those that count no tokens."""
    return [
        name
        for name, metric in METRICS.items()
        if evaluator in metric.evaluators and (per_token or not metric.per_token)
    ]
