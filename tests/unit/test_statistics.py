"""Bootstrap intervals against what is known about them."""

from collections.abc import Sequence

import numpy as np
import pytest

from evomerge_contract.manifest import Jsonl, Objective
from evomerge_contract.metrics import MetricName
from evomerge_contract.report import Interval, ItemScore, fitness_of
from evomerge_worker.evaluate.metrics import aggregate
from evomerge_worker.evaluate.statistics import RESAMPLES, fitness_samples, interval


def objective(name: str = "o", metric: MetricName = "exact_match", weight: str = "1") -> Objective:
    return Objective(name=name, jsonl=Jsonl(search="a", select="b", test="c"), metric=metric, weight=weight)


def scores(values: Sequence[float], counts: Sequence[float] | None = None) -> list[ItemScore]:
    return [ItemScore(value=v, count=c) for v, c in zip(values, counts or [1.0] * len(values), strict=True)]


def answers(rng: np.random.Generator, share: float, items: int) -> list[float]:
    return (rng.random(items) < share).astype(float).tolist()


def width(of: Interval) -> float:
    return of.high - of.low


def test_the_interval_of_a_share_covers_it_about_95_times_in_100() -> None:
    rng, items, runs, share = np.random.default_rng(0), 80, 200, 0.4
    found = [
        interval(fitness_samples([objective()], [{"o": scores(answers(rng, share, items))}], run)[:, 0])
        for run in range(runs)
    ]
    covered = sum(i.low <= share <= i.high for i in found) / runs
    assert 0.91 <= covered <= 0.98
    normal = 2 * 1.96 * np.sqrt(share * (1 - share) / items)
    assert np.mean([width(i) for i in found]) == pytest.approx(normal, rel=0.03)


def test_the_interval_of_a_paired_difference_covers_it_about_95_times_in_100() -> None:
    rng, runs, covered = np.random.default_rng(1), 200, 0
    for run in range(runs):
        hard = rng.random(80)  # one difficulty an item makes the two models' answers go together
        rows = [{"o": scores((hard < share).astype(float).tolist())} for share in (0.7, 0.5)]
        samples = fitness_samples([objective()], rows, run)
        gap = interval(samples[:, 0] - samples[:, 1])
        covered += gap.low <= 0.2 <= gap.high
    assert 0.90 <= covered / runs <= 0.98


def test_pairing_makes_the_interval_of_a_difference_narrower() -> None:
    rng = np.random.default_rng(2)
    hard = rng.random(200)
    rows = [{"o": scores((hard < share).astype(float).tolist())} for share in (0.6, 0.55)]
    paired = fitness_samples([objective()], rows, 0)
    other = fitness_samples([objective()], [rows[1]], 1)
    apart = width(interval(paired[:, 0] - other[:, 0]))
    assert width(interval(paired[:, 0] - paired[:, 1])) < 0.5 * apart


def test_the_difference_is_antisymmetric() -> None:
    rng = np.random.default_rng(3)
    samples = fitness_samples([objective()], [{"o": scores(answers(rng, p, 50))} for p in (0.3, 0.6)], 5)
    forth, back = interval(samples[:, 0] - samples[:, 1]), interval(samples[:, 1] - samples[:, 0])
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low), abs=1e-12)


def test_the_seed_decides_the_draws_and_other_rows_do_not() -> None:
    rng = np.random.default_rng(4)
    one, two = ({"o": scores(answers(rng, 0.5, 60))} for _ in range(2))
    alone = fitness_samples([objective()], [one], 7)
    assert alone.shape == (RESAMPLES, 1)
    np.testing.assert_array_equal(alone[:, 0], fitness_samples([objective()], [two, one], 7)[:, 1])
    assert not np.array_equal(alone, fitness_samples([objective()], [one], 8))


def test_perplexity_is_the_exponential_of_drawn_nats_over_drawn_tokens() -> None:
    """Three texts of 10, 20 and 30 tokens: the 10 possible draws have known figures and known frequencies."""
    nats, tokens = [5.0, 30.0, 90.0], [10.0, 20.0, 30.0]
    samples = fitness_samples([objective(metric="perplexity")], [{"o": scores(nats, tokens)}], 0)[:, 0]
    possible: dict[float, float] = {}
    for draw in np.ndindex(3, 3, 3):
        figure = -np.exp(sum(nats[i] for i in draw) / sum(tokens[i] for i in draw))
        possible[round(figure, 9)] = possible.get(round(figure, 9), 0.0) + 1 / 27
    seen, times = np.unique(samples.round(9), return_counts=True)
    assert set(seen.tolist()) == set(possible)
    for figure, count in zip(seen.tolist(), times.tolist(), strict=True):
        assert count / RESAMPLES == pytest.approx(possible[figure], abs=0.02)


def test_several_objectives_are_drawn_apart_and_weighted_as_the_fitness_is() -> None:
    rng = np.random.default_rng(6)
    objectives = [objective("a", weight="3"), objective("b", "perplexity", "1")]
    row = {
        "a": scores(answers(rng, 0.5, 300)),
        "b": scores(rng.uniform(5, 15, 200).tolist(), [10.0] * 200),
    }
    samples = fitness_samples(objectives, [row], 0)[:, 0]
    point = fitness_of(objectives, {o.name: aggregate(o.metric, row[o.name]) for o in objectives})
    assert samples.mean() == pytest.approx(point, abs=0.01)
    share = np.array([s.value for s in row["a"]])
    rate = np.array([s.value / s.count for s in row["b"]])
    error = np.hypot(0.75 * share.std() / np.sqrt(300), 0.25 * np.exp(rate.mean()) * rate.std() / np.sqrt(200))
    assert samples.std() == pytest.approx(error, rel=0.03)


def test_items_of_two_objectives_are_never_drawn_together() -> None:
    """Two objectives that happen to hold the same scores are as good as twice the items: the error is 1/√2 of one's."""
    of_one = scores(answers(np.random.default_rng(9), 0.5, 300))
    one = fitness_samples([objective("a")], [{"a": of_one}], 0)[:, 0]
    two = fitness_samples([objective("a"), objective("b")], [{"a": of_one, "b": of_one}], 0)[:, 0]
    assert two.std() == pytest.approx(one.std() / np.sqrt(2), rel=0.03)


def test_draws_are_made_in_bounded_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws come out of parts of any size, so a large data set needs no more memory than a small one."""
    row = {"o": scores(answers(np.random.default_rng(7), 0.5, 40))}
    whole = fitness_samples([objective()], [row], 0)
    monkeypatch.setattr("evomerge_worker.evaluate.statistics._CHUNK", 40 * 300)
    np.testing.assert_array_equal(whole, fitness_samples([objective()], [row], 0))


def test_an_extreme_draw_of_perplexity_stays_finite() -> None:
    row = {"o": scores([1.0, 800.0], [1.0, 1.0])}
    assert np.isfinite(fitness_samples([objective(metric="perplexity")], [row], 0)).all()
