"""The compiled loops and torch: one meaning, the same bits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge_worker.merge import native, selection
from evomerge_worker.merge.draws import Drawing, Draws
from evomerge_worker.merge.formula import Delta, Votes, WeightedSum, plain
from evomerge_worker.merge.method import InputTensor
from evomerge_worker.merge.run import carry_out
from evomerge_worker.merge.selection import at_ranks, between, largest_share, select
from evomerge_worker.merge.statistics import (
    _magnitudes,
    _plain_norms,
    at_least,
    norms,
)
from evomerge_worker.merge.sums import _plain_products, _plain_thinned_norms
from evomerge_worker.merge.thinning import AtLeast, Between, Drawn, Sieve, Thinning, choose
from evomerge_worker.merge.threads import threads

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [1, 2, 63, 255, 511, 512, 513, 65_536, 70_001, 1_050_000]


def _tensor(seed: int, count: int, dtype: torch.dtype = torch.bfloat16, coarse: bool = False) -> Tensor:
    """Weights as models have them; every hundredth is zero, minus zero, tiny or large."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator) * 0.05
    if coarse:
        values = values.mul_(64).round_().div_(64)
    odd = torch.tensor([0.0, -0.0, 1e-7, -3e-6, 60.0, -250.0])
    places = torch.arange(min(seed % 7, count - 1), count, 100)
    values[places] = odd[torch.randint(len(odd), (len(places),), generator=generator)]
    return values.to(dtype)


def _both(formula: WeightedSum | Votes, dtype: torch.dtype) -> None:
    like = formula.base if isinstance(formula, Votes) else formula.tensors[0]
    compiled, by_torch = torch.empty(like.shape, dtype=dtype), torch.empty(like.shape, dtype=dtype)
    work = native.ready(formula, compiled)
    assert work is not None, "the compiled library is not there, or does not do this"
    (finite,) = native.run([work])
    assert finite is bool(plain(formula, by_torch))
    if finite:
        whole = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
        assert torch.equal(compiled.view(whole), by_torch.view(whole))


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("sources", [1, 2, 3, 4, 5, 16])
def test_sums_have_the_same_bits(sources: int, count: int) -> None:
    tensors = tuple(_tensor(seed, count) for seed in range(sources))
    weights = tuple(0.3 - 0.17 * s for s in range(sources))
    _both(WeightedSum(tensors, weights), torch.bfloat16)


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("dtype", [*DTYPES, None])
def test_sums_of_all_dtypes_have_the_same_bits(dtype: torch.dtype | None, out: torch.dtype) -> None:
    """None: each tensor in another one."""
    tensors = tuple(_tensor(seed, 10_007, dtype or DTYPES[seed]) for seed in range(3))
    _both(WeightedSum(tensors, (0.6, -1.4, 0.9)), out)


_EDGE, _FAR = 0.046875, 0.09375
"""Magnitudes that many elements of coarse tensors have."""


def _thinnings(count: int) -> list[Thinning]:
    draws = Draws.of(1, "m", "t")
    chosen = choose([draws.numbers(0, count, torch.device("cpu")) < 50_000], like=torch.empty(count))
    some = count // 50
    return [None, AtLeast(_EDGE, count), Between(_EDGE, some, _FAR, some), AtLeast(_EDGE, some), chosen,
            AtLeast(_EDGE, 0), Drawn(draws, 20_000), Between(_EDGE, 0, _EDGE, some), Between(_EDGE, some, _EDGE, count),
            Between(_EDGE, 3, _EDGE, 9), Between(_EDGE, some, _EDGE, some + 1), Between(_EDGE, count, _FAR, count),
            Between(0.0, some, _FAR, 0), Between(0.0, some, 0.0, 2 * some),
            AtLeast(float("inf"), 0), Drawn(draws, 0), Drawn(draws, 65_536)]  # fmt: skip


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("sources", [1, 2, 3, 4, 5, 16])
@pytest.mark.parametrize("how", [(False, False, 1.0), (False, False, 0.9), (True, False, 1.0), (True, True, 1.0)])
def test_votes_have_the_same_bits(how: tuple[bool, bool, float], sources: int, count: int) -> None:
    consensus, normalize, divisor = how
    base, kinds = _tensor(99, count, coarse=True), _thinnings(count)
    for first, lambda_ in ((0, 1.0), (7, 1.3)):
        deltas = tuple(
            Delta(_tensor(s, count, coarse=True), w := 0.9 - 0.25 * s, 1.1 * w, kinds[(first + s) % len(kinds)])
            for s in range(sources)
        )
        _both(Votes(base, deltas, consensus, normalize, divisor, lambda_), torch.bfloat16)


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("dtype", [*DTYPES, None])
@pytest.mark.parametrize("kind", range(17))
def test_votes_of_all_dtypes_have_the_same_bits(dtype: torch.dtype | None, out: torch.dtype, kind: int) -> None:
    count = 9_001
    base = _tensor(99, count, dtype or torch.float16)
    deltas = tuple(
        Delta(_tensor(s, count, dtype or DTYPES[s]), 0.5 + s, 0.7 - s, _thinnings(count)[(kind + s) % 17])
        for s in range(3)
    )
    _both(Votes(base, deltas, consensus=True, normalize=True, lambda_=0.8), out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", [1e30, float("inf"), float("nan"), 2e5])
def test_what_is_not_finite_is_told(dtype: torch.dtype, weight: float) -> None:
    """Also what only the rounding makes infinite: 250 times 2e5 is beyond float16 alone."""
    tensors = (_tensor(1, 5_000, torch.float32).mul(1e8), _tensor(2, 5_000))
    _both(WeightedSum(tensors, (weight, 0.1)), dtype)
    _both(Votes(tensors[1], (Delta(tensors[0], 1.0, weight),)), dtype)
    largest = torch.full((600,), torch.finfo(dtype).max, dtype=torch.float32)
    _both(WeightedSum((largest,), (1.0,)), dtype)
    _both(WeightedSum((largest,), (1.002,)), dtype)


@pytest.mark.parametrize("place", [5, 69_999])
@pytest.mark.parametrize("sources", [1, 2, 3, 4])
@pytest.mark.parametrize("wrong", [float("inf"), float("-inf"), float("nan"), 3e38])
def test_what_is_not_finite_is_told_of_sums_of_bfloat16(sources: int, place: int, wrong: float) -> None:
    """In the middle and in the last elements, which are not as many as a step; 3e38 becomes infinite by its weight."""
    tensors = [_tensor(seed, 70_001) for seed in range(sources)]
    tensors[-1][place] = wrong
    _both(WeightedSum(tuple(tensors), (1.5,) * sources), torch.bfloat16)
    out = torch.empty(70_001, dtype=torch.bfloat16)
    work = native.ready(WeightedSum(tuple(tensors), (1.5,) * sources), out)
    assert work is not None
    assert native.run([work]) == [False]


def test_a_large_result_may_begin_anywhere() -> None:
    """What goes past the caches must be aligned; what is not goes through them."""
    count = (1 << 20) + 7
    formula = WeightedSum((_tensor(1, count), _tensor(2, count)), (0.3, 0.4))
    outs = [torch.empty(count + 1, dtype=torch.bfloat16)[first : first + count] for first in (0, 1)]
    works = [native.ready(formula, out) for out in outs]
    assert native.run([work for work in works if work is not None]) == [True, True]
    assert torch.equal(*outs)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_threads_share_formulas_out_and_each_is_carried_out_once(number: int) -> None:
    """The sums are carried out into one of their own operands: twice would tell."""
    tensors = [_tensor(seed, 5000 + seed) for seed in range(40)]
    tensors[17][3] = float("nan")
    formulas = [WeightedSum((tensor, _tensor(seed, 5000 + seed)), (0.75, 0.5)) for seed, tensor in enumerate(tensors)]
    expected = [torch.empty_like(tensor) for tensor in tensors]
    fine = [bool(plain(formula, out)) for formula, out in zip(formulas, expected, strict=True)]
    works = [native.ready(formula, tensor) for formula, tensor in zip(formulas, tensors, strict=True)]
    with threads(number) as workers:
        assert native.run([work for work in works if work is not None], workers) == fine
    assert fine == [seed != 17 for seed in range(40)]
    assert all(torch.equal(*pair) for pair, ok in zip(zip(tensors, expected, strict=True), fine, strict=True) if ok)


def test_merging_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_library", lambda: None)
    tensors, out = (_tensor(1, 700), _tensor(2, 700)), torch.empty(700, dtype=torch.bfloat16)
    assert carry_out(WeightedSum(tensors, (0.5, 0.25)), out)
    expected = torch.empty_like(out)
    plain(WeightedSum(tensors, (0.5, 0.25)), expected)
    assert torch.equal(out, expected)


def test_every_half_and_every_rounding_has_the_same_bits() -> None:
    """All 65,536 numbers of float16 in; out, what lies on and beside the middle between two neighbours."""
    every = torch.arange(65_536, dtype=torch.int32).to(torch.int16).view(torch.float16)
    finite = every[every.isfinite()]
    _both(WeightedSum((finite,), (1.0,)), torch.float32)
    _both(WeightedSum((finite,), (1.0,)), torch.float16)
    for dtype in (torch.float16, torch.bfloat16):
        numbers = finite.float().to(dtype)
        middle = (numbers.float() + torch.nextafter(numbers, torch.full_like(numbers, 1e4)).float()) / 2
        for beside in (-1, 0, 1):
            near = (middle.view(torch.int32) + beside).view(torch.float32)
            _both(WeightedSum((near,), (1.0,)), dtype)


def test_what_the_library_cannot_do_is_left_to_torch() -> None:
    many = tuple(_tensor(s, 100) for s in range(17))
    assert native.ready(WeightedSum(many, (0.1,) * 17), torch.empty(100)) is None
    assert native.ready(Votes(many[0], (Delta(many[1][::2], 1.0, 1.0),)), torch.empty(100)) is None
    crosswise = torch.empty(10, 10).t()
    assert native.ready(WeightedSum((crosswise,), (1.0,)), torch.empty(10, 10)) is None


def _source(tensor: Tensor) -> InputTensor:
    return InputTensor(tensor, "t", {}, Drawing(0, lambda: "m"))


@given(st.integers(1, 3000), st.floats(0.0, 1.0, exclude_min=True), st.booleans(), st.sampled_from(DTYPES))
@settings(deadline=None)
def test_thresholds_are_those_of_sorting(n: int, density: float, coarse: bool, dtype: torch.dtype) -> None:
    base = _tensor(1, n, dtype, coarse)
    sources = [_source(_tensor(seed, n, dtype, coarse)) for seed in (2, 3)]
    found = at_least(sources, base, [density, 1.0])
    assert found[1] is None
    if density < 1:
        _same_kept(sources[0].tensor, base, found[0], max(1, int(density * n)))


@pytest.mark.parametrize("density", [1e-6, 0.01, 0.4137, 0.7, 0.999999])
@pytest.mark.parametrize("coarse", [False, True])
def test_thresholds_of_large_tensors_are_those_of_sorting(density: float, coarse: bool) -> None:
    n = 300_001
    base = _tensor(1, n, coarse=coarse)
    sources = [_source(_tensor(seed, n, coarse=coarse)) for seed in (2, 3, 4)]
    for source, found in zip(sources, at_least(sources, base, [density] * 3), strict=True):
        _same_kept(source.tensor, base, found, max(1, int(density * n)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", [1e-5, 0.3, 0.999])
def test_thresholds_of_sources_that_are_kept_in_mind_are_the_same(dtype: torch.dtype, density: float) -> None:
    """Whoever merges once finds a threshold by one pass, whoever goes on merging from all magnitudes there are."""
    n = 400_000
    base, tensor = _tensor(1, n, dtype), _tensor(2, n, dtype)
    once = _source(tensor)
    known = once._replace(memo=lambda kind, find, source: find(source, base))
    assert select([tensor], base, [int(density * n)]) == at_least([known], base, [density])
    assert at_least([once], base, [density]) == at_least([known], base, [density])


def test_a_sample_that_misleads_changes_nothing() -> None:
    """The large magnitudes all lie where no sample is taken."""
    n = 1 << 19
    tensor = torch.rand(n, generator=torch.Generator().manual_seed(0))
    order = torch.argsort(_sampled(n), stable=True)  # what is sampled comes last
    hidden = torch.empty(n)
    hidden[order] = tensor.sort(descending=True).values
    base = torch.zeros(n)
    assert select([hidden], base, [n // 4]) == [None]
    (found,) = at_least([_source(hidden)], base, [0.25])
    _same_kept(hidden, base, found, n // 4)


@pytest.mark.parametrize("density", [0.05, 0.5, 0.6])
def test_neighbours_that_are_alike_mislead_no_sample(density: float) -> None:
    """Rows differ a thousandfold, as layers do of which a fine-tuning has changed some; one in three has not moved."""
    generator = torch.Generator().manual_seed(0)
    scales = 10 ** (3 * torch.rand(1024, 1, generator=generator)) * (torch.arange(1024)[:, None] % 3 > 0)
    tensor = (torch.randn(1024, 1024, generator=generator) * scales).flatten()
    base, kept = torch.zeros(len(tensor)), int(density * len(tensor))
    (found,) = select([tensor], base, [kept])
    _same_kept(tensor, base, found, kept)


def _sampled(count: int) -> Tensor:
    """1 where an element is in the sample, else 0."""
    place = torch.arange(count)
    mask = torch.zeros(count)
    mask[selection._runs(place).flatten()] = 1
    return mask


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 513, 300_001, 1_100_000])
def test_magnitudes_are_the_same_without_the_library(
    dtype: torch.dtype, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of float32 they are too many to be told apart, and those of one bin are looked into."""
    base, tensor = _tensor(1, count, dtype), _tensor(2, count, dtype)
    magnitudes = _magnitudes(_source(tensor), base)
    key = int(magnitudes[1 + len(magnitudes) // 4]) >> (0 if magnitudes[0] else native.LOW_BITS)
    bits = (tensor.float() - base.float()).abs().view(torch.int32)
    size = int((bits >> native.LOW_BITS == key).sum())
    bounds = [native.Bounds(key << native.LOW_BITS, (key + 1) << native.LOW_BITS, size)]
    (inside,) = between([tensor], base, bounds)
    assert bool(magnitudes[0]) == (len(bits.unique()) > native.MOST_DISTINCT)
    monkeypatch.setattr(native, "usable", lambda *_: False)
    assert np.array_equal(_magnitudes(_source(tensor), base), magnitudes)
    (plainly,) = between([tensor], base, bounds)
    assert np.array_equal(np.sort(plainly.bits), np.sort(inside.bits))
    assert plainly[1:] == inside[1:]
    assert inside.within == size


@pytest.mark.parametrize("dtype", DTYPES)
def test_thresholds_without_the_library_are_those_of_sorting(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "usable", lambda *_: False)
    n = 150_001
    base, source = _tensor(1, n, dtype), _source(_tensor(2, n, dtype))
    for density in (1e-6, 0.3, 0.999):
        (found,) = at_least([source], base, [density])
        _same_kept(source.tensor, base, found, max(1, int(density * n)))


@pytest.mark.parametrize("moved", [0.05, 0.4])
def test_thresholds_where_most_has_not_moved(moved: float) -> None:
    """float32 of so many magnitudes that they are not told apart, and one bin with most of the tensor: that of zero."""
    n = 400_000
    base, generator = torch.randn(n, generator=torch.Generator().manual_seed(1)), torch.Generator().manual_seed(2)
    change = torch.randn(n, generator=generator) * (torch.rand(n, generator=generator) < moved)
    source = _source(base + change)
    known = source._replace(memo=lambda kind, find, source: find(source, base))
    for density in (0.02, 0.3, 0.5, 0.9):
        (found,) = at_least([known], base, [density])
        _same_kept(source.tensor, base, found, int(density * n))


def test_thresholds_of_more_sources_than_the_library_takes_at_once() -> None:
    """float32, whose thresholds are looked for inside a bin."""
    n = 200_000
    base = torch.zeros(n)
    sources = [_source(torch.randn(n, generator=torch.Generator().manual_seed(seed))) for seed in range(37)]
    for source, found in zip(sources, at_least(sources, base, [0.5] * 37), strict=True):
        _same_kept(source.tensor, base, found, n // 2)


def _same_kept(tensor: Tensor, base: Tensor, found: AtLeast | None, kept: int) -> None:
    """Exactly as many, the largest, the first among equals."""
    vector = tensor.float() - base.float()
    order = np.argsort(-vector.abs().numpy(), kind="stable")[:kept].copy()
    assert found is not None
    wanted = torch.zeros(len(vector), dtype=torch.bool)
    wanted[order] = True
    assert torch.equal(Sieve(found).keep(vector, 0), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", SIZES)
def test_norms_of_what_is_thinned_out_have_the_same_bits(dtype: torch.dtype, count: int) -> None:
    base, tensor = _tensor(1, count, dtype, coarse=True), _tensor(2, count, dtype, coarse=True)
    vector = tensor.float() - base.float()
    for thinning in _thinnings(count):
        delta = Delta(tensor, 0.5, 0.75, thinning)
        found, plainly = native.thinned_norms(delta, base), _plain_thinned_norms(delta, base)
        assert [sorted(lanes) for lanes in found.tolist()] == [sorted(lanes) for lanes in plainly.tolist()]
        kept = vector[Sieve(thinning).keep(vector, 0)]
        assert found[0].sum() == pytest.approx(0.75 * float(vector.abs().double().sum()), rel=1e-6)
        assert found[1].sum() == pytest.approx(0.75 * float(kept.abs().double().sum()), rel=1e-6)


@given(st.integers(1, 400), st.data())
def test_what_lies_between_two_places_of_the_order_is_kept(count: int, data: st.DataObject) -> None:
    """Also piece by piece, as long tensors are gone through."""
    vector = torch.randint(-3, 4, (count,), generator=torch.Generator().manual_seed(count)).float()
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first, count - 1))
    order = vector.abs().argsort(stable=True)
    low, high = float(vector[order[first]].abs()), float(vector[order[last]].abs())
    before, behind = vector.abs()[order[:first]], vector.abs()[order[: last + 1]]
    sieve = Sieve(Between(low, int((before == low).sum()), high, int((behind == high).sum())))
    kept = torch.cat([sieve.keep(part, 0) for part in vector.split(data.draw(st.integers(1, count)))])
    assert torch.equal(kept.nonzero().flatten(), order[first : last + 1].sort().values)


@given(st.lists(st.booleans(), max_size=70), st.integers(1, 9))
def test_what_is_chosen_comes_out_again(keep: list[bool], whole_bytes: int) -> None:
    vector = torch.tensor(keep, dtype=torch.bool)
    chosen = choose(vector.split(8 * whole_bytes), like=vector)
    assert chosen.bits.numel() == -(-len(keep) // 8)
    assert Sieve(chosen).keep(torch.ones(len(keep)), 0).tolist() == keep


@given(
    st.lists(st.sampled_from([0.0, 1e-40, 1e-12, 0.25, 1.0, 1.0 + 2**-23, 3e38]), min_size=1, max_size=60), st.data()
)
def test_elements_of_some_ranks_are_those_of_sorting(values: list[float], data: st.DataObject) -> None:
    ranks = data.draw(st.lists(st.integers(1, len(values)), max_size=3))
    vector = torch.tensor(values)
    ordered = vector.sort(descending=True).values.tolist()
    assert at_ranks(lambda: vector.split(7), ranks) == [ordered[rank - 1] for rank in ranks]


@given(st.lists(st.floats(0, 8, width=32) | st.sampled_from([0.0, 0.5]), max_size=60), st.floats(0, 1))
def test_the_largest_share_is_that_of_sorting(values: list[float], share: float) -> None:
    vector = torch.tensor(values)
    kept = Sieve(largest_share(lambda: vector.split(7), share)).keep(vector, 0)
    number = int(share * int(vector.count_nonzero()))
    order = (-vector).argsort(stable=True)[:number]
    assert torch.equal(kept.nonzero().flatten(), order.sort().values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 300, 70_001, 1_100_000])
def test_norms_have_the_same_bits(dtype: torch.dtype, count: int) -> None:
    base, source = _tensor(1, count, dtype), _source(_tensor(2, count, dtype))
    by_draw = native.norms(source.tensor, base, source.draws)
    assert np.array_equal(by_draw, _plain_norms(source.tensor, base, source.draws))
    vector = (source.tensor.float() - base.float()).abs().double()
    for limit in (0, 16, 20_000 // 16 * 16, 65_536):
        whole, kept = norms(source, base, limit)
        drawn = source.draws.numbers(0, count, torch.device("cpu")) < limit
        assert whole == pytest.approx(float(vector.sum()), rel=1e-12)
        assert kept == pytest.approx(float(vector[drawn].sum()), rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", SIZES)
def test_products_have_the_same_bits(dtype: torch.dtype, count: int) -> None:
    one, other = _tensor(1, count, dtype), _tensor(2, count, torch.float32)
    found = native.products(one, other)
    plain_sums = _plain_products(one, other)
    assert [sorted(parts) for parts in found.tolist()] == [sorted(parts) for parts in plain_sums.tolist()]
    assert found.sum(axis=1)[2] == pytest.approx(float((one.double() * other.double()).sum()), rel=1e-12, abs=1e-9)


@pytest.fixture(autouse=True)
def _compiled() -> None:
    assert native.usable(torch.zeros(1)), "build the package where there is a C compiler"
