"""What every search algorithm keeps to, and what each is for: better genomes than chance finds."""

import hashlib
import random
import statistics
from collections.abc import Callable

import cmaes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge_contract.candidate import Genome
from evomerge_contract.manifest import Algorithm, Jsonl, Objective, Search
from evomerge_operator.search import BINARY, Gene, SearchError, make_search
from evomerge_operator.search.cma_es import CmaEs, separable_learning_rate

ALGORITHMS: tuple[Algorithm, ...] = ("GA", "CMA-ES", "SepCMA-ES", "Random")
OBJECTIVES = [Objective(name="o", jsonl=Jsonl(search="1", select="2", test="3"), metric="acc")]
Outcome = Callable[[int, Genome], float | None]


def unit_genes(count: int, start: float = 0.5) -> list[Gene]:
    return [gene(str(i), 0.0, 1.0, start) for i in range(count)]


def gene(group: str, low: float, high: float, start: float) -> Gene:
    return Gene("weight", group, None, low, high, start)


def slots(count: int, algorithm: Algorithm) -> list[Gene]:
    """Genes as a data-flow space has them: so many slots, every other one in at the start, and a scale."""
    scale = Gene("scale", "0", None, 0.5, 1.5, 1.0, spread=0.05)
    if algorithm in BINARY:
        made = [Gene("slot", str(i), None, 0, 1, float(i % 2), kind="binary", spread=0.25) for i in range(count)]
    else:
        made = [Gene("slot", str(i), None, -1, 1, 0.7 if i % 2 else -0.7, spread=1 / 6) for i in range(count)]
    return [*made, scale]


def drive(
    search: Search, genes: list[Gene], outcome: Outcome, ones: tuple[int, int] | None = None
) -> tuple[list[Genome], list[float | None]]:
    """The whole search, one candidate after the other."""
    algorithm = make_search(search, genes, "ps", OBJECTIVES, ones)
    genomes: list[Genome] = []
    fitness: list[float | None] = []
    for index in range(search.candidates):
        while algorithm.told < index - search.lag + 1:
            value = fitness[algorithm.told]
            algorithm.tell(None if value is None else {"o": value})
        genomes.append(algorithm.ask())
        fitness.append(outcome(index, genomes[-1]))
    return genomes, fitness


# What every algorithm keeps to


def numpy_random_state() -> list[int]:
    return list(np.random.get_state(legacy=False)["state"]["key"])


def micro(units: int) -> float:
    """The decimal number nearest to `units` millionths."""
    return float(f"{units}e-6")


@st.composite
def any_genes(draw: st.DrawFn) -> list[Gene]:
    """Up to five genes, from one step of the grid wide to two thousand."""
    genes = []
    for i in range(draw(st.integers(1, 5))):
        low = draw(st.integers(-(10**9), 10**9))
        width = draw(st.sampled_from([1, 2, 1000, 10**6, 2 * 10**9]))
        start = draw(st.integers(low, low + width))
        genes.append(gene(str(i), micro(low), micro(low + width), micro(start)))
    return genes


ANY_OUTCOMES = st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=150)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(ALGORITHMS),
    st.sampled_from([None, 4, 6]),
    st.integers(1, 20),
    any_genes(),
    ANY_OUTCOMES,
)
def test_whatever_the_outcomes_genomes_stay_on_the_grid_and_within_bounds(
    algorithm: Algorithm, population: int | None, lag: int, genes: list[Gene], outcomes: list[float | None]
) -> None:
    search = Search(algorithm=algorithm, candidates=len(outcomes), population=population, lag=lag)
    state, numpy_state = random.getstate(), numpy_random_state()
    genomes, _ = drive(search, genes, lambda index, _: outcomes[index])
    assert random.getstate() == state
    assert numpy_random_state() == numpy_state
    for genome in genomes:
        assert len(genome) == len(genes)
        for value, gene in zip(genome, genes, strict=True):
            assert type(value) is float
            assert gene.low <= value <= gene.high
            assert value == round(value, 6)
            assert str(value) != "-0.0"


@pytest.mark.parametrize("algorithm", ["GA", "Random"])
def test_the_first_candidate_is_the_start_genome(algorithm: Algorithm) -> None:
    genes = [gene("a", 0, 1, 0.1234567), gene("b", -1, 1, -0.0), gene("c", 0, 1, 7.0)]
    [first], _ = drive(Search(algorithm=algorithm, candidates=1), genes, lambda *_: None)
    assert str(first) == "(0.123457, 0.0, 1.0)"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_genome_whose_outcomes_are_not_told_and_an_outcome_without_a_genome_are_refused(algorithm: Algorithm) -> None:
    asked = make_search(Search(algorithm=algorithm, candidates=9, lag=3), unit_genes(2), "ps", OBJECTIVES)
    with pytest.raises(SearchError, match="candidate 0 has an outcome and no genome"):
        asked.tell({"o": 1.0})
    for _ in range(3):
        asked.ask()
    with pytest.raises(SearchError, match=r"candidate 3 is chosen from 1 outcomes \(lag 3\), and 0 have been told"):
        asked.ask()
    with pytest.raises(SearchError, match="candidate 3 has 1 genes, the space 2"):
        asked.replay((0.5,))
    asked.tell(None)
    assert len(asked.ask()) == 2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_candidates_are_ranked_by_the_weighted_mean_of_their_objectives_and_failures_left_out(
    algorithm: Algorithm,
) -> None:
    two = [*OBJECTIVES, OBJECTIVES[0].model_copy(update={"name": "nats", "metric": "perplexity", "weight": "3"})]
    asked = make_search(Search(algorithm=algorithm, candidates=9), unit_genes(2), "ps", two)
    outcomes = {4: {"o": 0.5, "nats": 2.0}, 1: None, 7: {"o": 0.5, "nats": 1.0}, 2: {"o": 0.5, "nats": 1.0}}
    assert asked.ranked(outcomes) == [2, 7, 4]


def test_nothing_to_search_is_refused_in_words() -> None:
    search = Search(candidates=1)
    with pytest.raises(SearchError, match="no gene to search"):
        make_search(search, [], "ps", OBJECTIVES)
    with pytest.raises(SearchError, match="min must be below max, which it is not for weight/same, weight/turned"):
        make_search(search, [gene("same", 1, 1, 1), gene("right", 0, 1, 0), gene("turned", 2, 1, 1)], "ps", OBJECTIVES)


@pytest.mark.parametrize(
    ("algorithm", "version", "candidates", "digest"),
    [
        ("GA", "GA/1", 200, "c28345a0e0c842fd"),
        (
            "CMA-ES",
            "CMA-ES/1",
            30,
            "12dc45dfb3b260d6",
        ),  # before the first tell: later ones lean on the machine's LAPACK
        ("SepCMA-ES", "SepCMA-ES/1", 200, "8d94f4155bfe0985"),
        ("Random", "Random/1", 200, "7c1bd8a1ad855244"),
    ],
)
def test_a_version_stands_for_one_sequence_of_genomes(
    algorithm: Algorithm, version: str, candidates: int, digest: str
) -> None:
    """When this fails, published searches would go on differently: raise the version, then the digest."""
    search = Search(algorithm=algorithm, candidates=candidates, seed=7)
    genomes, _ = drive(search, unit_genes(8), lambda _, g: -sum((v - 0.3) ** 2 for v in g))
    assert make_search(search, unit_genes(8), "ps", OBJECTIVES).version == version
    assert hashlib.sha256(repr(genomes).encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("algorithm", "candidates", "digest"),
    [
        ("GA", 200, "1c9ec94837c2f0c7"),
        ("CMA-ES", 20, "65182e85459643d5"),
        ("SepCMA-ES", 200, "0e05403ab6cbeead"),
        ("Random", 200, "44a6c03fd41ce409"),
    ],
)
def test_a_version_stands_for_one_sequence_of_genomes_around_a_start_too(
    algorithm: Algorithm, candidates: int, digest: str
) -> None:
    search = Search(algorithm=algorithm, candidates=candidates, seed=7)
    ones = (2, 5) if algorithm in BINARY else None
    genomes, _ = drive(search, slots(8, algorithm), lambda _, g: sum(g[:3]) - sum(g[5:8]) - g[8] ** 2, ones)
    assert hashlib.sha256(repr(genomes).encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("algorithm", ["GA", "Random"])
def test_binary_genes_are_zero_or_one_and_as_many_as_may_be(algorithm: Algorithm) -> None:
    for seed in range(10):
        search = Search(algorithm=algorithm, candidates=80, seed=seed, lag=1 + seed)
        genomes, _ = drive(search, slots(6, algorithm), lambda _, g: sum(g), ones=(2, 4))
        assert all(set(genome[:6]) <= {0.0, 1.0} and 2 <= sum(genome[:6]) <= 4 for genome in genomes)
        assert all(0.5 <= genome[6] <= 1.5 for genome in genomes)


def test_binary_genes_without_a_spread_are_drawn_from_everywhere() -> None:
    genes = [Gene("slot", str(i), None, 0, 1, 0.0, kind="binary") for i in range(20)]
    genomes, _ = drive(Search(candidates=20, lag=16), genes, lambda *_: None)
    assert 0.4 < statistics.mean(value for genome in genomes[1:] for value in genome) < 0.6


@pytest.mark.parametrize("outcome", [None, 0.0])
def test_an_island_whose_outcomes_are_all_the_same_stays_where_it_is_if_genes_have_a_spread(
    outcome: float | None,
) -> None:
    """And anywhere in the range if they have none."""
    search = Search(algorithm="SepCMA-ES", candidates=400, population=10, lag=1)
    near, _ = drive(search, slots(30, "SepCMA-ES"), lambda *_: outcome)
    assert all(abs(statistics.mean(g[i] for g in near[200:]) - (0.7 if i % 2 else -0.7)) < 0.2 for i in range(30))
    anywhere, _ = drive(search, [gene(str(i), -1, 1, 0.7) for i in range(30)], lambda *_: outcome)
    assert abs(statistics.mean(value for genome in anywhere[200:] for value in genome)) < 0.2


# Better than chance


def problem(kind: str, dimensions: int, seed: int) -> Callable[[Genome], float]:
    """A seeded function of [0, 1]^n with its optimum, 0 but for `accuracy`, somewhere in the middle."""
    source = np.random.RandomState(seed)
    optimum = source.uniform(0.2, 0.8, dimensions)
    turned, _ = np.linalg.qr(source.normal(size=(dimensions, dimensions)))
    if kind == "sphere":
        return lambda g: -float(np.mean((np.array(g) - optimum) ** 2))
    if kind == "ellipsoid":  # turned, axes of lengths 1 to 10
        scales = 100 ** (np.arange(dimensions) / (dimensions - 1))
        return lambda g: -float(np.sum(scales * (turned @ (np.array(g) - optimum)) ** 2) / scales.sum())
    # The share of 500 items that a genome gets right: each wants it near a point of its own.
    mixed = np.eye(dimensions) + turned / 2
    wanted = optimum + source.normal(0, 0.12, (500, dimensions))
    weights = source.gamma(1, 1, (500, dimensions))
    allowed = source.gamma(2, 0.5, 500) * dimensions * 0.035
    return lambda g: float(np.mean((weights * ((np.array(g) - wanted) @ mixed.T) ** 2).sum(1) < allowed))


def best_found(algorithm: Algorithm, kind: str, seed: int) -> float:
    """By the quickstart's budget: 8 genes, 240 candidates, lag 16."""
    judge = problem(kind, 8, seed)
    _, fitness = drive(Search(algorithm=algorithm, candidates=240, seed=seed), unit_genes(8), lambda _, g: judge(g))
    return max(f for f in fitness if f is not None)


@pytest.mark.parametrize("kind", ["sphere", "ellipsoid"])
def test_each_algorithm_comes_nearer_to_the_optimum_than_chance(kind: str) -> None:
    """The loss is at most a third of random search's in the median of seven seeds, and smaller on each."""
    chance = [best_found("Random", kind, seed) for seed in range(7)]
    for algorithm in ALGORITHMS[:3]:
        found = [best_found(algorithm, kind, seed) for seed in range(7)]
        assert statistics.median(found) > statistics.median(chance) / 3, algorithm
        assert all(f > c for f, c in zip(found, chance, strict=True)), algorithm


def test_each_algorithm_beats_chance_on_an_accuracy() -> None:
    """By at least 10 points in the median of seven seeds, the GA by 15, where steps of 1/500 make plateaus."""
    chance = statistics.median(best_found("Random", "accuracy", seed) for seed in range(7))
    for algorithm, margin in (("GA", 0.15), ("CMA-ES", 0.1), ("SepCMA-ES", 0.1)):
        found = statistics.median(best_found(algorithm, "accuracy", seed) for seed in range(7))  # type: ignore[arg-type]
        assert found >= chance + margin, algorithm


@pytest.mark.parametrize("algorithm", ["GA", "CMA-ES", "SepCMA-ES"])
def test_failures_are_left_behind(algorithm: Algorithm) -> None:
    """Where half of the space fails, the last candidates mostly succeed."""
    search = Search(algorithm=algorithm, candidates=240)
    _, fitness = drive(search, unit_genes(4), lambda _, g: None if g[0] > 0.5 else g[1] - g[0] - 10)
    assert sum(f is None for f in fitness[-60:]) < 15


# The genetic algorithm


def test_the_first_genomes_of_the_ga_cover_every_genes_range_evenly() -> None:
    """Of the 22 after the start (population 8, lag 16), one falls in each 22nd of each range."""
    genomes, _ = drive(Search(candidates=23), unit_genes(5), lambda *_: 0.0)
    for values in zip(*genomes[1:], strict=True):
        assert sorted(int(value * 22) for value in values) == list(range(22))


def test_the_ga_breeds_from_the_best_and_never_repeats_a_genome() -> None:
    """On a plateau too, where nothing else keeps children apart from their parents."""
    genomes, _ = drive(Search(candidates=400), unit_genes(2), lambda *_: 1.0)
    assert len(set(genomes)) == 400


def test_the_ga_samples_at_random_while_all_fail() -> None:
    genomes, _ = drive(Search(candidates=100), unit_genes(3), lambda *_: None)
    assert len(set(genomes)) == 100
    assert all(min(values) < 0.1 and max(values) > 0.9 for values in zip(*genomes[50:], strict=True))


# CMA-ES


@pytest.mark.parametrize(("lag", "islands"), [(1, 2), (4, 2), (5, 3), (16, 5)])
def test_islands_learn_from_their_own_samples_only(lag: int, islands: int) -> None:
    """With populations of four: making island 1 fail changes genomes of island 1 and of no other."""
    search = Search(algorithm="CMA-ES", candidates=80, population=4, lag=lag)

    def judge(index: int, genome: Genome) -> float:
        return sum(genome)

    plain, _ = drive(search, unit_genes(3), judge)
    other, _ = drive(search, unit_genes(3), lambda k, g: -sum(g) if k // 4 % islands == 1 else judge(k, g))
    changed = {k // 4 % islands for k in range(80) if plain[k] != other[k]}
    assert changed == {1}
    assert plain[:4] != plain[4:8]  # a seed of its own for each


def test_cma_es_starts_around_the_start_with_a_sixth_of_each_range() -> None:
    genes = [gene(str(i), low=-2.0, high=4.0, start=0.4) for i in range(20)]
    genomes, _ = drive(Search(algorithm="CMA-ES", candidates=200, population=100, lag=1), genes, lambda *_: None)
    assert abs(np.mean(genomes) - 0.4) < 0.1
    assert abs(np.std(genomes) - 1.0) < 0.1


@pytest.mark.parametrize("drift", [0.0, 1e-13])
@pytest.mark.parametrize("algorithm", ["CMA-ES", "SepCMA-ES"])
def test_an_island_that_has_converged_starts_anew_elsewhere(algorithm: Algorithm, drift: float) -> None:
    """The optimum is found to the grid's last digits, then candidates spread over the range again.

    So it is also when no two outcomes are ever quite the same.
    """
    search = Search(algorithm=algorithm, candidates=2400, population=6, lag=1)
    genomes, _ = drive(search, unit_genes(2), lambda k, g: -((g[0] - 0.3) ** 2) - (g[1] - 0.6) ** 2 - drift * k)
    found = next(k for k, g in enumerate(genomes) if max(abs(g[0] - 0.3), abs(g[1] - 0.6)) < 5e-6)
    assert found < 750
    assert max(abs(a - 0.3) for a, _ in genomes[found:]) > 0.4


@pytest.mark.parametrize("level", [0.0, None])
def test_an_island_on_a_plateau_starts_anew_elsewhere(level: float | None) -> None:
    """Where a whole block scores, or fails, alike, the island goes on around another mean, drawn anywhere."""
    genomes, _ = drive(Search(algorithm="CMA-ES", candidates=48), unit_genes(4, start=0.05), lambda *_: level)
    assert max(max(genome) for genome in genomes[:24]) < 0.7  # three islands of eight around the start
    assert max(max(genome) for genome in genomes[24:]) > 0.9


def test_full_cma_es_is_refused_above_512_dimensions_and_separable_takes_over() -> None:
    with pytest.raises(SearchError, match=r"CMA-ES in 513 dimensions is refused \(at most 512\); choose SepCMA-ES"):
        make_search(Search(algorithm="CMA-ES", candidates=1), unit_genes(513), "ps", OBJECTIVES)
    make_search(Search(algorithm="CMA-ES", candidates=1), unit_genes(512), "ps", OBJECTIVES)
    _, fitness = drive(Search(algorithm="SepCMA-ES", candidates=300), unit_genes(513), lambda _, g: -sum(g))
    assert np.mean([f or 0 for f in fitness[-30:]]) > np.mean([f or 0 for f in fitness[:30]]) + 10


def test_a_population_that_separable_cma_es_cannot_learn_from_is_refused() -> None:
    with pytest.raises(SearchError, match="4096 is too large for SepCMA-ES in 8 dimensions"):
        make_search(Search(algorithm="SepCMA-ES", candidates=1, population=4096), unit_genes(8), "ps", OBJECTIVES)
    for dimensions, population in ((2, 6), (8, 10), (8, 67), (192, 128), (2000, 4096)):
        library = cmaes.SepCMA(mean=np.zeros(dimensions), sigma=1.0, population_size=population, seed=0)
        assert separable_learning_rate(dimensions, population) == pytest.approx(library._c1 + library._cmu)


def test_one_gene_is_enough_for_every_algorithm() -> None:
    for algorithm in ALGORITHMS:
        _, fitness = drive(Search(algorithm=algorithm, candidates=120), unit_genes(1), lambda _, g: -abs(g[0] - 0.71))
        assert max(f for f in fitness if f is not None) > -0.02, algorithm


def test_population_follows_the_spec_or_the_rule_of_the_algorithm() -> None:
    assert [
        make_search(Search(algorithm=a, candidates=1), unit_genes(8), "ps", OBJECTIVES).population for a in ALGORITHMS
    ] == [
        8,
        10,
        10,
        1,
    ]
    assert (
        CmaEs(Search(algorithm="CMA-ES", candidates=1), unit_genes(8), "ps", OBJECTIVES, separable=False).islands == 3
    )
    for algorithm in ALGORITHMS:
        assert (
            make_search(
                Search(algorithm=algorithm, candidates=1, population=12), unit_genes(8), "ps", OBJECTIVES
            ).population
            == 12
        )
