"""How sure a score is: the paired bootstrap over items.

Efron and Tibshirani, An Introduction to the Bootstrap (1993): the percentile interval of chapter 13, on the plain
resampling with replacement of chapter 6. Items of each objective are drawn anew, the same draw for every model
(paired), and the fitness is computed from each draw as it is from the items themselves. Where a score is 0 or 1
throughout, every draw is the same and the interval has no width.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from evomerge_contract.manifest import Objective
from evomerge_contract.metrics import METRICS
from evomerge_contract.report import Interval, ItemScore

RESAMPLES = 10_000
_CHUNK = 1 << 22
_LARGEST_EXPONENT = 700.0

Samples = npt.NDArray[np.float64]


def fitness_samples(
    objectives: Sequence[Objective], rows: Sequence[Mapping[str, Sequence[ItemScore]]], seed: int
) -> Samples:
    """Bootstrap replicates of each row's fitness (`fitness_of` the contract), [10,000, rows].

    `rows` holds each model's item scores by objective, the same items in the same order for all. Differences of two
    columns are paired. The result depends on the objectives' order, the scores and the seed alone.
    """
    weights = np.array([float(objective.weight) for objective in objectives])
    fitness = np.zeros((RESAMPLES, len(rows)))
    for index, (objective, weight) in enumerate(zip(objectives, weights / weights.sum(), strict=True)):
        values = np.array([[score.value for score in row[objective.name]] for row in rows])
        counts = np.array([[score.count for score in row[objective.name]] for row in rows])
        figures = _ratio_samples(values, counts, np.random.default_rng([seed, index]))
        metric = METRICS[objective.metric]
        if metric.aggregate == "exp":
            figures = np.exp(np.minimum(figures, _LARGEST_EXPONENT))  # one draw may overflow where the whole does not
        fitness += (-weight if metric.lower_is_better else weight) * figures
    return fitness


def interval(samples: npt.NDArray[np.float64]) -> Interval:
    """The 95 % percentile interval of bootstrap replicates, [resamples]."""
    low, high = np.quantile(samples, [0.025, 0.975])
    return Interval(low=float(low), high=float(high))


def _ratio_samples(values: Samples, counts: Samples, rng: np.random.Generator) -> Samples:
    """sum(value) / sum(count) of each row over drawn items; values and counts are [rows, items].

    A draw is held as how often each item is in it, so that one draw serves all rows.
    """
    rows, items = values.shape
    stacked = np.concatenate([values, counts])
    step = max(1, _CHUNK // items)
    parts = []
    for start in range(0, RESAMPLES, step):
        draws = min(step, RESAMPLES - start)
        drawn = rng.integers(items, size=(draws, items)) + np.arange(draws)[:, None] * items
        times = np.bincount(drawn.ravel(), minlength=draws * items).reshape(draws, items).astype(float)
        # einsum, not BLAS: its order of summation does not depend on the number of threads
        sums = np.einsum("di,ri->dr", times, stacked)
        parts.append(sums[:, :rows] / sums[:, rows:])
    return np.concatenate(parts)
