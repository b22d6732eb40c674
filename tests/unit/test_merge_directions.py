"""The methods that work with directions and angles, against their published formulas in float64."""

import math

import pytest
import torch
from torch import Tensor

from evomerge_worker.errors import CandidateError
from method_inputs import NO_BASE, SHAPE, carried_out, close, random_tensor, source

NUSLERP = {"nuslerp_flatten": True, "nuslerp_row_wise": False}
MULTISLERP = {"normalize_weights": True, "eps": 1e-8}
KARCHER = {"max_iter": 10, "tol": 1e-5}


def _slerp(x: Tensor, y: Tensor, t: float) -> Tensor:
    """Shoemake 1985, in float64, of two vectors."""
    angle = torch.acos((x @ y / x.norm() / y.norm()).clamp(-1, 1))
    return (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize(
    ("flatten", "row_wise", "vectors"), [(True, False, "all"), (True, True, "all"), (False, False, 0), (False, True, 1)]
)
def test_nuslerp_is_slerp_by_the_share_of_the_second_weight(
    flatten: bool, row_wise: bool, vectors: object, with_base: bool
) -> None:
    """`nuslerp_row_wise` takes columns, as mergekit has it: vectors along the first dimension."""
    base, x, y = (random_tensor(seed) for seed in range(3))
    origin = base.double() if with_base else torch.zeros(SHAPE, dtype=torch.float64)
    sources = [source(x, weight=0.6), source(y, weight=0.2)]
    shared = {"nuslerp_flatten": flatten, "nuslerp_row_wise": row_wise}
    result = carried_out("nuslerp", sources, base if with_base else NO_BASE, shared)
    a, b = x.double() - origin, y.double() - origin
    if vectors == "all":
        mixed = _slerp(a.flatten(), b.flatten(), 0.25).view(SHAPE)
    else:
        dim = int(vectors == 1)
        pairs = zip(a.unbind(dim), b.unbind(dim), strict=True)
        mixed = torch.stack([_slerp(v, w, 0.25) for v, w in pairs], dim=dim)
    close(result, origin + mixed)


def test_nuslerp_takes_weights_that_cancel_for_equal_ones() -> None:
    x, y = random_tensor(1), random_tensor(2)
    result = carried_out("nuslerp", [source(x, weight=0.4), source(y, weight=-0.4)], NO_BASE, NUSLERP)
    close(result, _slerp(x.double().flatten(), y.double().flatten(), 0.5).view(SHAPE))


@pytest.mark.parametrize("factor", [1.0, 3.0, -4.0, -1.0, 0.0])
def test_nuslerp_of_tensors_on_one_line_is_linear(factor: float) -> None:
    x = random_tensor(1)
    result = carried_out("nuslerp", [source(x, weight=0.7), source(x * factor, weight=0.3)], NO_BASE, NUSLERP)
    share = 0.7 + 0.3 * factor if factor else math.sin(0.7 * math.pi / 2)  # zero is orthogonal to everything
    close(result, share * x.double())


@pytest.mark.parametrize("shape", [(5,), (400, 1)])
def test_nuslerp_takes_vectors_and_rows_of_one_element(shape: tuple[int, ...]) -> None:
    """These lie on one line with every other, whatever their signs."""
    shared = NUSLERP | {"nuslerp_flatten": False}
    for seed in range(5):
        x, y = random_tensor(seed, shape), random_tensor(seed + 10, shape)
        sources = [source(x, weight=0.7), source(y, weight=0.3)]
        result = carried_out("nuslerp", sources, NO_BASE, shared)
        a, b = x.double(), y.double()
        close(result, _slerp(a, b, 0.3) if shape == (5,) else 0.7 * a + 0.3 * b)


def _multislerp(vectors: list[Tensor], weights: list[float], eps: float) -> Tensor:
    """mergekit's description: step from the mean direction along the weighted tangents, by the exponential map."""
    units = [v / (v.norm() + eps) for v in vectors]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    mean = mean / mean.norm()
    tangent = sum(w * (u - (u * mean).sum() * mean) for w, u in zip(weights, units, strict=True))
    length = tangent.norm() + eps
    moved = mean * torch.cos(length) + tangent * torch.sin(length) / length
    return moved * sum(w * v.norm() for w, v in zip(weights, vectors, strict=True))


@pytest.mark.parametrize("eps", [1e-8, 0.3])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("with_base", [False, True])
def test_multislerp_averages_directions_and_lengths(with_base: bool, normalize: bool, eps: float) -> None:
    base, *tensors = (random_tensor(seed) * (seed + 1) for seed in range(4))
    weights = [0.5, 1.2, -0.1]
    shared = {"normalize_weights": normalize, "eps": eps}
    sources = [source(tensor, weight=w) for tensor, w in zip(tensors, weights, strict=True)]
    result = carried_out("multislerp", sources, base if with_base else NO_BASE, shared)
    origin = base.double() if with_base else torch.zeros(SHAPE, dtype=torch.float64)
    shares = [w / sum(weights) for w in weights] if normalize else weights
    close(result, origin + _multislerp([tensor.double() - origin for tensor in tensors], shares, eps))


def test_multislerp_leaves_one_source_alone_whatever_its_weight() -> None:
    x = random_tensor(1).bfloat16()
    assert torch.equal(carried_out("multislerp", [source(x, weight=0.3)], random_tensor(0), MULTISLERP), x.float())


def test_multislerp_averages_two_opposed_sources_linearly() -> None:
    x = random_tensor(1)
    result = carried_out("multislerp", [source(x, weight=1.0), source(-2 * x, weight=1.0)], NO_BASE, MULTISLERP)
    close(result, -0.5 * x.double())


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ((1.0, -0.5, -0.5), "weights sum to zero"),
        ((0.1, 0.2, -0.3), "weights sum to zero"),
        ((2.0, 1.0, 1.0), "directions of the sources"),
    ],
)
def test_multislerp_of_what_cancels_fails_the_candidate(weights: tuple[float, ...], words: str) -> None:
    x = random_tensor(1)
    sources = [source(f * x, weight=w) for f, w in zip((1, -1, -3), weights, strict=True)]
    with pytest.raises(CandidateError, match=words) as caught:
        carried_out("multislerp", sources, NO_BASE, MULTISLERP)
    assert caught.value.reason == "NotFinite"


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_multislerp_of_zeros_is_zero(eps: float, count: int) -> None:
    zeros = [source(torch.zeros(SHAPE), weight=1.0)] * count
    assert not carried_out("multislerp", zeros, NO_BASE, MULTISLERP | {"eps": eps}).any()


@pytest.mark.parametrize(
    ("method", "count", "shared"),
    [("multislerp", 3, MULTISLERP), ("nuslerp", 2, NUSLERP), ("model_stock", 3, {"filter_wise": False})],
)
def test_a_tensor_that_no_source_has_changed_stays_the_bases(method: str, count: int, shared: dict[str, float]) -> None:
    """Such as frozen embeddings."""
    base = random_tensor(0)
    sources = [source(base.clone(), weight=0.4)] * count
    assert torch.equal(carried_out(method, sources, base, shared), base)


def _logarithms(mean: Tensor, units: list[Tensor]) -> Tensor:
    """The mean of the tangents that lead from `mean` to the unit vectors: zero at their Karcher mean."""
    tangents = []
    for unit in units:
        cosine = (unit * mean).sum().clamp(-1, 1)
        angle = torch.acos(cosine)
        tangents.append(angle / torch.sin(angle) * (unit - cosine * mean) if angle else torch.zeros_like(mean))
    return sum(tangents[1:], start=tangents[0]) / len(tangents)


def test_karcher_is_where_the_tangents_to_all_sources_cancel() -> None:
    tensors = [random_tensor(seed) * seed for seed in (1, 2, 3, 4)]
    result = carried_out("karcher", [source(tensor) for tensor in tensors], NO_BASE, KARCHER | {"tol": 1e-7})
    lengths = [tensor.double().norm() for tensor in tensors]
    assert float(result.norm()) == pytest.approx(float(sum(lengths)) / 4, rel=1e-6)
    mean = result.double() / result.double().norm()
    units = [tensor.double() / length for tensor, length in zip(tensors, lengths, strict=True)]
    assert float(_logarithms(mean, units).norm()) < 1e-6
    assert float(_logarithms(units[0], units).norm()) > 0.1


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_karcher_takes_as_many_steps_as_it_is_told(steps: int) -> None:
    tensors = [random_tensor(seed) for seed in (1, 2, 3)]
    result = carried_out("karcher", [source(tensor) for tensor in tensors], NO_BASE, KARCHER | {"max_iter": steps})
    units = [tensor.double() / tensor.double().norm() for tensor in tensors]
    mean = sum(units[1:], start=units[0])
    mean = mean / mean.norm()
    for _ in range(steps):
        step = _logarithms(mean, units)
        mean = torch.cos(step.norm()) * mean + torch.sin(step.norm()) * step / step.norm()
    close(result, mean * sum(tensor.double().norm() for tensor in tensors) / 3)


def test_karcher_of_two_is_half_way_between_them() -> None:
    x, y = random_tensor(1), random_tensor(2)
    result = carried_out("karcher", [source(x), source(y)], NO_BASE, KARCHER)
    a, b = x.double().flatten(), y.double().flatten()
    between = _slerp(a / a.norm(), b / b.norm(), 0.5) * (a.norm() + b.norm()) / 2
    close(result.flatten(), between)


@pytest.mark.parametrize("tol", [0.0, 1e-5])
def test_karcher_counts_a_zero_tensor_by_its_length_only(tol: float) -> None:
    x = random_tensor(1)
    sources = [source(x), source(torch.zeros(SHAPE)), source(x)]
    close(carried_out("karcher", sources, NO_BASE, KARCHER | {"tol": tol}), x.double() * 2 / 3)
    assert not carried_out("karcher", sources[1:2] * 2, NO_BASE, KARCHER).any()


def test_nuslerp_of_opposed_tensors_is_linear() -> None:
    for seed in range(50):
        x = random_tensor(seed, (1,) if seed % 2 else SHAPE)
        result = carried_out("nuslerp", [source(x, weight=0.2), source(-3.1 * x, weight=0.8)], NO_BASE, NUSLERP)
        close(result, 0.2 * x.double() + 0.8 * (-3.1 * x).double())


def test_karcher_of_opposed_tensors_has_the_direction_of_the_first() -> None:
    for seed in range(50):
        x = random_tensor(seed, (1,) if seed % 2 else SHAPE)
        close(carried_out("karcher", [source(x), source(-3 * x)], NO_BASE, KARCHER), 2 * x.double())


def test_karcher_leaves_one_source_alone() -> None:
    x = random_tensor(1).bfloat16()
    assert torch.equal(carried_out("karcher", [source(x)], NO_BASE, KARCHER), x.float())


def _model_stock(base: Tensor, tensors: list[Tensor]) -> Tensor:
    """Jang et al. 2024, equations 4 and 5, of vectors."""
    deltas = [tensor - base for tensor in tensors]
    count = len(deltas)
    pairs = [(i, j) for i in range(count) for j in range(i)]
    cosine = sum(deltas[i] @ deltas[j] / deltas[i].norm() / deltas[j].norm() for i, j in pairs) / len(pairs)
    t = count * cosine / (1 + (count - 1) * cosine)
    return t * sum(tensors[1:], start=tensors[0]) / count + (1 - t) * base


@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock_goes_towards_the_mean_as_far_as_the_sources_agree(filter_wise: bool) -> None:
    base, common, *own = (random_tensor(seed) for seed in range(5))
    tensors = [base + common + noise for noise in own]
    result = carried_out("model_stock", [source(t) for t in tensors], base, {"filter_wise": filter_wise})
    wide, wides = base.double(), [t.double() for t in tensors]
    if filter_wise:
        rows = [_model_stock(wide[i], [t[i] for t in wides]) for i in range(SHAPE[0])]
        close(result, torch.stack(rows))
    else:
        close(result, _model_stock(wide.flatten(), [t.flatten() for t in wides]).view(SHAPE))


@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock_of_opposed_sources_stays_at_the_base(filter_wise: bool) -> None:
    """Where the cosine is -1/(n - 1), no finite way towards the mean is the best one."""
    base, x = random_tensor(0), random_tensor(1)
    sources = [source(base + x), source(base - x)]
    result = carried_out("model_stock", sources, base, {"filter_wise": filter_wise})
    torch.testing.assert_close(result, base, rtol=0, atol=1e-6)
    unchanged = carried_out("model_stock", [source(base), source(base)], base, {"filter_wise": filter_wise})
    assert torch.equal(unchanged, base)
