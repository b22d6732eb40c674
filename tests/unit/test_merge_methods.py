"""What each merge method computes, against its published formula in float64; mergekit is asked in tests/parity."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from evomerge_contract.methods import METHODS
from evomerge_worker.errors import CandidateError
from evomerge_worker.merge import formula, native
from evomerge_worker.merge.draws import Draws, limit_of
from evomerge_worker.merge.sums import row_products
from method_inputs import (
    FAMILY,
    NO_BASE,
    SHAPE,
    carried_out,
    close,
    on_threads,
    random_tensor,
    some_settings,
    some_sources,
    source,
)


def test_linear_is_the_weighted_mean() -> None:
    x, y = random_tensor(1), random_tensor(2)
    result = carried_out("linear", [source(x, weight=0.3), source(y, weight=1.2)], x, {"normalize": True})
    close(result, (0.3 * x.double() + 1.2 * y.double()) / 1.5)


def test_linear_without_normalize_is_the_weighted_sum() -> None:
    x, y = random_tensor(1), random_tensor(2)
    result = carried_out("linear", [source(x, weight=0.3), source(y, weight=-1.2)], x, {"normalize": False})
    close(result, 0.3 * x.double() - 1.2 * y.double())


def test_one_model_alone_comes_out_bit_for_bit() -> None:
    x = random_tensor(1).bfloat16()
    for weight in (1.0, 0.3, 7.0):
        sources = [source(x, weight=weight), source(random_tensor(2), weight=0.0)]
        result = carried_out("linear", sources, x, {"normalize": True})
        assert torch.equal(result.bfloat16(), x)


@pytest.mark.parametrize("weights", [(0.5, -0.5), (0.1, 0.2, -0.3), (0.0, 0.0)])
def test_weights_that_sum_to_zero_fail_the_candidate(weights: tuple[float, ...]) -> None:
    """Decimals do so only nearly: what is divided by their sum would be finite, and of no use."""
    sources = [source(random_tensor(seed), weight=weight) for seed, weight in enumerate(weights)]
    with pytest.raises(CandidateError, match="weights sum to zero") as caught:
        carried_out("linear", sources, random_tensor(1), {"normalize": True})
    assert caught.value.reason == "NotFinite"


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_keeps_to_the_arc_between_base_andsource(t: float) -> None:
    """Shoemake's formula; for vectors of one length all points have that length."""
    x = random_tensor(1)
    y = random_tensor(2)
    y = y * (x.norm() / y.norm())
    result = carried_out("slerp", [source(y)], x, {"t": t})
    angle = torch.acos((x.double() * y.double()).sum() / (x.double().norm() * y.double().norm()))
    expected = (torch.sin((1 - t) * angle) * x.double() + torch.sin(t * angle) * y.double()) / torch.sin(angle)
    close(result, expected)
    assert float(result.norm()) == pytest.approx(float(x.norm()), rel=1e-5)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0, 0.0])
def test_slerp_of_parallel_or_zero_tensors_is_finite(factor: float) -> None:
    x = random_tensor(1)
    result = carried_out("slerp", [source(x * factor)], x, {"t": 0.25})
    assert bool(result.isfinite().all())
    if factor:
        close(result, (0.75 + 0.25 * factor) * x.double())


def test_task_arithmetic_adds_weighted_task_vectors() -> None:
    base, x, y = random_tensor(0), random_tensor(1), random_tensor(2)
    sources = [source(x, weight=0.4), source(y, weight=-0.7)]
    shared = FAMILY | {"lambda": 1.5}
    result = carried_out("task_arithmetic", sources, base, shared)
    b = base.double()
    close(result, b + 1.5 * (0.4 * (x - b) - 0.7 * (y - b)))


def test_task_arithmetic_normalized_divides_by_the_weights() -> None:
    base, x, y = random_tensor(0), random_tensor(1), random_tensor(2)
    sources = [source(x, weight=0.4), source(y, weight=0.2)]
    result = carried_out("task_arithmetic", sources, base, FAMILY | {"normalize": True})
    b = base.double()
    close(result, b + (0.4 * (x - b) + 0.2 * (y - b)) / 0.6)


def test_ties_trims_elects_and_averages() -> None:
    """Yadav et al. 2023, algorithm 1, by a loop over elements."""
    base, x, y, z = (random_tensor(seed) for seed in range(4))
    weights = {1: 0.9, 2: 0.6, 3: 1.1}
    sources = [source(t, weight=weights[i], density=0.4) for i, t in ((1, x), (2, y), (3, z))]
    result = carried_out("ties", sources, base, FAMILY | {"normalize": True})
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
    close(result.flatten(), expected)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_drops_by_its_masks_and_restores_the_l1_norm(method: str) -> None:
    base, x = random_tensor(0), random_tensor(1)
    result = carried_out(method, [source(x, weight=1.0, density=0.3)], base, FAMILY | {"rescale": True})
    delta = (x - base).double()
    kept = delta * (Draws.of(0, "0", "t").numbers(0, delta.numel(), delta.device) < limit_of(0.3)).view(SHAPE)
    close(result, base + kept * delta.abs().sum() / kept.abs().sum())


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sources_are_never_written_to(method: str, dtype: torch.dtype) -> None:
    """They are views of files that every later candidate reads; what comes out shares no memory with them."""
    tensors = [random_tensor(seed).to(dtype) for seed in range(3)]
    before = [tensor.clone() for tensor in tensors]
    sources = some_sources(method, *tensors[1:])
    for chosen in (sources, sources[:1], []):
        if len(chosen) < max(METHODS[method].least, 0 if METHODS[method].base == "origin" else 1):
            continue
        for base in (tensors[0], NO_BASE) if METHODS[method].base == "optional origin" else (tensors[0],):
            merged = carried_out(method, chosen, base, some_settings(method))
            assert merged.dtype == torch.float32
            assert merged.shape == SHAPE
            merged.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_sources_of_no_weight_are_never_written_to() -> None:
    base, x, y = (random_tensor(seed) for seed in range(3))
    before = [tensor.clone() for tensor in (base, x, y)]
    for sources in ([source(x, weight=0.5, density=0.5), source(y, weight=0.0, density=0.5)], [source(y, weight=0.0)]):
        carried_out("ties", sources, base, FAMILY | {"rescale": True, "lambda": 2.0}).add_(1)
    assert all(torch.equal(a, b) for a, b in zip((base, x, y), before, strict=True))


@pytest.mark.parametrize("shape", [(1_000_003,), (5, 200_003), (200_003, 5)])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_number_of_threads_changes_no_bit(method: str, shape: tuple[int, ...]) -> None:
    """Sizes at which torch shares its work out; few long rows and many short ones, for what is taken by rows."""
    x, y, z = (random_tensor(seed, shape) for seed in range(3))
    switches = [{}] if len(shape) == 1 else [{"nuslerp_flatten": False, "nuslerp_row_wise": r} for r in (False, True)]
    for chosen in switches:
        shared = some_settings(method, **(chosen if method == "nuslerp" else {}))
        results = _on_threads(lambda shared=shared: carried_out(method, some_sources(method, y, z), x, shared))
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])
        if method != "nuslerp":
            return


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 3), (3, 1), (2, 1, 3)])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_smallest_tensors_are_merged_too(method: str, shape: tuple[int, ...]) -> None:
    x, y, z = (random_tensor(seed, shape) for seed in range(3))
    merged = carried_out(method, some_sources(method, y, z), x, some_settings(method))
    assert merged.shape == shape
    assert bool(merged.isfinite().all())


@pytest.mark.parametrize("density", [0.02, 0.3, 0.97])
@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs_of_few_magnitudes_are_the_same_without_the_library(
    method: str, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all that is kept may have one magnitude."""
    x = torch.randint(1, 3, (4096,), generator=torch.Generator().manual_seed(0)) / 64
    one, shared = [source(x, weight=1, density=density, gamma=0.01)], FAMILY | {"rescale": True}
    compiled = carried_out(method, one, torch.zeros(4096), shared)
    assert int(compiled.count_nonzero()) == int(density * 4096)
    monkeypatch.setattr(native, "usable", lambda *_: False)
    assert torch.equal(carried_out(method, one, torch.zeros(4096), shared), compiled)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("shape", [(70, 45), (45, 70, 3), (3001,)])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_it_does_not_matter_of_what_size_the_pieces_are(
    method: str, shape: tuple[int, ...], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many equal magnitudes, so that those of a threshold lie in several pieces."""
    if not compiled:
        monkeypatch.setattr(native, "usable", lambda *_: False)
    x, y, z = (random_tensor(seed, shape).mul_(8).round_().div_(8) for seed in range(3))
    ways = [{"nuslerp_flatten": False, "nuslerp_row_wise": r} for r in (False, True)] if method == "nuslerp" else []
    for chosen in [*ways, {}]:
        shared = some_settings(method, **chosen)
        whole = carried_out(method, some_sources(method, y, z), x, shared)
        with monkeypatch.context() as patched:
            patched.setattr(formula, "_PIECE", 256)
            patched.setattr(formula, "_COLUMNS", 4)
            close(carried_out(method, some_sources(method, y, z), x, shared), whole.double())


def _on_threads(merge: Callable[[], Tensor]) -> list[Tensor]:
    """What comes out on one, two and three threads."""
    results = []
    for threads in (1, 2, 3):
        with on_threads(threads):
            results.append(merge())
    return results


@pytest.mark.parametrize("shape", [(1, 1_000_003), (3, 400_001), (400_001, 3)])
def test_sums_of_rows_are_near_exact_for_any_number_of_threads(shape: tuple[int, ...]) -> None:
    x, y = random_tensor(1, shape).abs().double(), random_tensor(2, shape).abs().double()
    one, *others = _on_threads(lambda: row_products(x, y))
    torch.testing.assert_close(one, (x * y).sum(-1, keepdim=True), rtol=1e-12, atol=0)
    assert all(torch.equal(one, other) for other in others)
