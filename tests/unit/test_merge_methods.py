"""What each merge method computes, against its published formula in float64; mergekit is asked in tests/parity."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from evomerge_contract.methods import METHODS
from evomerge_worker.errors import CandidateError
from evomerge_worker.merge.draws import Draws, limit_of
from evomerge_worker.merge.method import Source
from evomerge_worker.merge.methods import method_named
from evomerge_worker.merge.run import tensor_of
from evomerge_worker.merge.sums import total

SHAPE = (7, 11)
FAMILY = {"normalize": False, "rescale": False, "lambda": 1.0, "int8_mask": False}


def _random(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _source(tensor: Tensor, place: int = 0, **values: float) -> Source:
    return Source(tensor, values, Draws.of(0, str(place), "t"))


def _merged(method: str, sources: Sequence[Source], base: Tensor, shared: Mapping[str, float]) -> Tensor:
    return tensor_of(method_named(method)(sources, base, shared))


def _close(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=4e-7 * float(expected.abs().max()))


def test_linear_is_the_weighted_mean() -> None:
    x, y = _random(1), _random(2)
    result = _merged("linear", [_source(x, weight=0.3), _source(y, weight=1.2)], x, {"normalize": True})
    _close(result, (0.3 * x.double() + 1.2 * y.double()) / 1.5)


def test_linear_without_normalize_is_the_weighted_sum() -> None:
    x, y = _random(1), _random(2)
    result = _merged("linear", [_source(x, weight=0.3), _source(y, weight=-1.2)], x, {"normalize": False})
    _close(result, 0.3 * x.double() - 1.2 * y.double())


def test_one_model_alone_comes_out_bit_for_bit() -> None:
    x = _random(1).bfloat16()
    for weight in (1.0, 0.3, 7.0):
        sources = [_source(x, weight=weight), _source(_random(2), weight=0.0)]
        result = _merged("linear", sources, x, {"normalize": True})
        assert torch.equal(result.bfloat16(), x)


def test_weights_that_sum_to_zero_fail_the_candidate() -> None:
    sources = [_source(_random(1), weight=0.5), _source(_random(2), weight=-0.5)]
    with pytest.raises(CandidateError, match="weights sum to zero") as caught:
        _merged("linear", sources, _random(1), {"normalize": True})
    assert caught.value.reason == "NotFinite"


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_keeps_to_the_arc_between_base_and_source(t: float) -> None:
    """Shoemake's formula; for vectors of one length all points have that length."""
    x = _random(1)
    y = _random(2)
    y = y * (x.norm() / y.norm())
    result = _merged("slerp", [_source(y)], x, {"t": t})
    angle = torch.acos((x.double() * y.double()).sum() / (x.double().norm() * y.double().norm()))
    expected = (torch.sin((1 - t) * angle) * x.double() + torch.sin(t * angle) * y.double()) / torch.sin(angle)
    _close(result, expected)
    assert float(result.norm()) == pytest.approx(float(x.norm()), rel=1e-5)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0, 0.0])
def test_slerp_of_parallel_or_zero_tensors_is_finite(factor: float) -> None:
    x = _random(1)
    result = _merged("slerp", [_source(x * factor)], x, {"t": 0.25})
    assert bool(result.isfinite().all())
    if factor:
        _close(result, (0.75 + 0.25 * factor) * x.double())


def test_task_arithmetic_adds_weighted_task_vectors() -> None:
    base, x, y = _random(0), _random(1), _random(2)
    sources = [_source(x, weight=0.4), _source(y, weight=-0.7)]
    shared = FAMILY | {"lambda": 1.5}
    result = _merged("task_arithmetic", sources, base, shared)
    b = base.double()
    _close(result, b + 1.5 * (0.4 * (x - b) - 0.7 * (y - b)))


def test_task_arithmetic_normalized_divides_by_the_weights() -> None:
    base, x, y = _random(0), _random(1), _random(2)
    sources = [_source(x, weight=0.4), _source(y, weight=0.2)]
    result = _merged("task_arithmetic", sources, base, FAMILY | {"normalize": True})
    b = base.double()
    _close(result, b + (0.4 * (x - b) + 0.2 * (y - b)) / 0.6)


def test_ties_trims_elects_and_averages() -> None:
    """Yadav et al. 2023, algorithm 1, by a loop over elements."""
    base, x, y, z = (_random(seed) for seed in range(4))
    weights = {1: 0.9, 2: 0.6, 3: 1.1}
    sources = [_source(t, weight=weights[i], density=0.4) for i, t in ((1, x), (2, y), (3, z))]
    result = _merged("ties", sources, base, FAMILY | {"normalize": True})
    deltas = []
    for tensor in (x, y, z):
        delta = (tensor - base).double().flatten()
        kept = delta.abs().argsort(descending=True)[: int(0.4 * delta.numel())]
        deltas.append(torch.zeros_like(delta).index_copy(0, kept, delta[kept]))
    expected = base.double().flatten().clone()
    for i in range(expected.numel()):
        votes = [(w, w * float(d[i])) for w, d in zip(weights.values(), deltas, strict=True)]
        sign = 1 if sum(v for _, v in votes) >= 0 else -1
        agreed = [(w, v) for w, v in votes if v * sign > 0]
        if agreed:
            expected[i] += sum(v for _, v in agreed) / sum(w for w, _ in agreed)
    _close(result.flatten(), expected)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_drops_by_its_masks_and_restores_the_l1_norm(method: str) -> None:
    base, x = _random(0), _random(1)
    result = _merged(method, [_source(x, weight=1.0, density=0.3)], base, FAMILY | {"rescale": True})
    delta = (x - base).double()
    kept = delta * (Draws.of(0, "0", "t").numbers(0, delta.numel(), delta.device) < limit_of(0.3)).view(SHAPE)
    _close(result, base + kept * delta.abs().sum() / kept.abs().sum())


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sources_are_never_written_to(method: str, dtype: torch.dtype) -> None:
    """They are views of files that every later candidate reads."""
    tensors = [_random(seed).to(dtype) for seed in range(3)]
    before = [tensor.clone() for tensor in tensors]
    sources = [_source(t, weight=w, density=0.5) for t, w in zip(tensors[1:], (0.5, 0.0), strict=True)]
    for chosen in (sources, sources[1:], []):
        _merged(method, chosen, tensors[0], FAMILY | {"rescale": True, "lambda": 2.0}).add_(1)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_sources_of_the_mixing_methods_are_never_written_to(method: str) -> None:
    x, y = _random(1), _random(2)
    before = (x.clone(), y.clone())
    sources = [_source(y)] if method == "slerp" else [_source(x, weight=1.0), _source(y, weight=2.0)]
    _merged(method, sources, x, {"normalize": True, "t": 0.5}).add_(1)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_number_of_threads_changes_no_bit(method: str) -> None:
    """Three million elements and some: sizes at which torch shares its work out."""
    x, y, z = (_random(seed, (3_000_013,)) for seed in range(3))
    sources = [_source(y, 0, weight=0.7, density=0.4), _source(z, 1, weight=-0.3, density=0.6)]
    shared = FAMILY | {"normalize": True, "rescale": True, "lambda": 1.1, "t": 0.3}
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(_merged(method, sources[:1] if method == "slerp" else sources, x, shared))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("count", [0, 1, 16_384, 20_000, 32_768, 40_000, 65_536, 1_000_003])
def test_sums_are_near_exact_for_any_size_and_number_of_threads(count: int) -> None:
    tensor = _random(count, (count,)).abs()
    before = torch.get_num_threads()
    sums = set()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            sums.add(total(tensor))
    finally:
        torch.set_num_threads(before)
    (found,) = sums
    assert found == pytest.approx(float(tensor.double().sum()), rel=1e-7)
