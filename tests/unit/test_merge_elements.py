"""The methods that choose element by element, against their published formulas in float64."""

import pytest
import torch
from torch import Tensor

from method_inputs import FAMILY, SHAPE, carried_out, close, random_tensor, source

SCE = {"select_topk": 1.0, "int8_mask": False}


def test_nearswap_takes_what_is_near_and_keeps_what_is_far() -> None:
    base, x = random_tensor(0), random_tensor(1)
    base[0, 0] = x[0, 0]
    result = carried_out("nearswap", [source(x)], base, {"t": 0.2})
    a, b = base.double(), x.double()
    near = (a - b).abs() <= 0.2
    assert near.any()
    assert not near.all()
    close(result, torch.where(near, b, a + 0.2 * torch.sign(b - a)))


def test_nearswap_of_nothing_is_the_base() -> None:
    base, x = random_tensor(0), random_tensor(1)
    assert torch.equal(carried_out("nearswap", [source(x)], base, {"t": 0.0}), base)


@pytest.mark.parametrize("scale", [1.0, -0.25])
def test_passthrough_scales_its_source(scale: float) -> None:
    x = random_tensor(1).bfloat16()
    ours = carried_out("passthrough", [source(x, scale=scale, scale_origin=0.0)], torch.empty(0), {})
    assert torch.equal(ours, x.float() * scale)


def test_passthrough_scales_its_source_about_an_origin() -> None:
    """A Gemma norm multiplies by 1 + weight: half of that is a weight of (1 + weight) / 2 - 1."""
    x = random_tensor(1).bfloat16()
    ours = carried_out("passthrough", [source(x, scale=0.3, scale_origin=-1.0)], torch.empty(0), {})
    close(ours, (x.double() + 1) * 0.3 - 1)


def test_an_origin_without_a_scale_changes_no_bit() -> None:
    x = random_tensor(1) * 1e-6
    assert torch.equal(carried_out("passthrough", [source(x, scale=1.0, scale_origin=-1.0)], torch.empty(0), {}), x)


def _sce(base: Tensor, tensors: list[Tensor], share: float) -> Tensor:
    """Wan et al. 2024, section 3.2, by loops over elements."""
    deltas = torch.stack([tensor - base for tensor in tensors]).flatten(1)
    mean = deltas.mean(0)
    variance = ((deltas - mean) ** 2).mean(0)
    if share < 1:
        kept = variance.argsort(descending=True)[: int(share * int((variance != 0).sum()))]
        deltas = deltas * torch.zeros_like(variance).index_fill_(0, kept, 1)
    energy = (deltas**2).mean(1)
    weights = energy / energy.sum() if energy.sum() >= 1e-6 else torch.full_like(energy, 1 / len(tensors))
    merged = base.flatten().clone()
    for i in range(merged.numel()):
        sign = 1 if float(deltas[:, i].sum()) >= 0 else -1
        agreed = [(w, d) for w, d in zip(weights.tolist(), deltas[:, i].tolist(), strict=True) if d * sign > 0]
        if agreed:
            merged[i] += sum(w * d for w, d in agreed) / sum(w for w, _ in agreed)
    return merged.view(SHAPE)


@pytest.mark.parametrize("share", [1.0, 0.4, 0.01, 0.0])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_sce_selects_calculates_and_erases(share: float, scale: float) -> None:
    """Task vectors of little energy weigh the same."""
    base = random_tensor(0)
    tensors = [base + scale * (seed + 1) * random_tensor(seed) for seed in range(1, 4)]
    tensors[2][0] = tensors[1][0] = tensors[0][0]  # no variance here
    result = carried_out("sce", [source(t) for t in tensors], base, SCE | {"select_topk": share})
    close(result, _sce(base.double(), [t.double() for t in tensors], share))


def test_sce_of_the_base_alone_is_the_base() -> None:
    base = random_tensor(0)
    assert torch.equal(carried_out("sce", [], base, SCE), base)


def _ram(base: Tensor, tensors: list[Tensor], epsilon: float, r: float = 0.0, alpha: float = 0.0) -> Tensor:
    """Yuan et al. 2026, by loops over elements; with r the overlap of each tensor alone, as mergekit has it."""
    deltas = [(tensor - base).flatten().tolist() for tensor in tensors]
    movers = [[i for i, delta in enumerate(deltas) if abs(delta[e]) > epsilon] for e in range(base.numel())]
    gains = []
    for i in range(len(deltas)):
        unique, shared = movers.count([i]), sum(i in several for several in movers if len(several) > 1)
        gains.append(1 + r * min(shared / max(unique, 1), alpha))
    merged = base.flatten().clone()
    for e, several in enumerate(movers):
        if len(several) == 1:
            merged[e] += gains[several[0]] * deltas[several[0]][e]
        elif several:
            merged[e] += sum(deltas[i][e] for i in several) / len(several)
    return merged.view(SHAPE)


def _sparse(seed: int, share: float) -> Tensor:
    """A task vector as reinforcement learning leaves it: zero in most places."""
    moved = torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed + 10)) < share
    return torch.where(moved, random_tensor(seed), 0.0)


@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 0.5])
def test_ram_averages_a_change_over_those_that_made_it(epsilon: float) -> None:
    base = random_tensor(0)
    tensors = [base + _sparse(seed, 0.2 * seed) for seed in range(1, 4)]
    result = carried_out("ram", [source(t) for t in tensors], base, {"epsilon": epsilon})
    close(result, _ram(base.double(), [t.double() for t in tensors], epsilon))


def test_ram_counts_a_change_of_exactly_epsilon_as_none() -> None:
    x, y = torch.tensor([0.5, -0.5, 1.0, 0.0]), torch.tensor([0.25, 1.0, 2.0, 0.5])
    result = carried_out("ram", [source(x), source(y)], torch.zeros(4), {"epsilon": 0.5})
    assert result.tolist() == [0, 1, 1.5, 0]


@pytest.mark.parametrize("alpha", [0.0, 0.4, 100.0])
@pytest.mark.parametrize("r", [0.1, 1.0, -0.5])
def test_ramplus_strengthens_what_one_model_alone_changed(r: float, alpha: float) -> None:
    base = random_tensor(0)
    tensors = [base + _sparse(seed, 0.2 * seed) for seed in range(1, 4)]
    shared = {"r": r, "alpha": alpha, "epsilon": 1e-5}
    result = carried_out("ramplus_tl", [source(t) for t in tensors], base, shared)
    close(result, _ram(base.double(), [t.double() for t in tensors], 1e-5, r, alpha))


@pytest.mark.parametrize("method", ["ram", "ramplus_tl"])
@pytest.mark.parametrize("number", [0, 1, 3])
def test_ram_of_equals_is_any_of_them_and_of_nothing_the_base(method: str, number: int) -> None:
    """Nothing is unique where all changed alike, nor where there is nothing to be changed."""
    base, delta = random_tensor(0), _sparse(1, 0.3)
    shared = {"r": 0.1, "alpha": 0.2, "epsilon": 0.0}
    result = carried_out(method, [source(base + delta)] * number, base, shared)
    close(result, (base + delta if number else base).double())
    assert torch.equal(carried_out(method, [source(base)] * number, base, shared), base)


def _fused(base: Tensor, x: Tensor) -> Tensor:
    """Arcee Fusion in float64, the tensor's last dimension a row."""
    p, q = (logits.softmax(-1) + 1e-8 for logits in (x, base))
    importance = (x - base).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    ordered = importance.flatten().sort().values
    lower, median, upper = (ordered[int(q * (len(ordered) - 1))] for q in (0.25, 0.5, 0.75))
    return torch.where(importance >= median + 1.5 * (upper - lower), x, base)


@pytest.mark.parametrize("shape", [SHAPE, (400, 3), (3, 5, 40), (2000,)])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_arcee_fusion_takes_the_elements_that_stand_out(shape: tuple[int, ...], scale: float) -> None:
    """Of models that lie near to one another too, where divergences in float32 are rounding errors."""
    base = random_tensor(0, shape)
    x = base + scale * random_tensor(1, shape) ** 3
    result, expected = carried_out("arcee_fusion", [source(x)], base, {}), _fused(base.double(), x.double())
    close(result, expected)
    taken = (result != base).float().mean()
    assert 0.01 < float(taken) < 0.35


@pytest.mark.parametrize("moved", [0, 1, 5])
def test_arcee_fusion_takes_everything_where_few_elements_moved(moved: int) -> None:
    """Three quarters without importance give a threshold of zero, which all reach."""
    base = random_tensor(0)
    x = base.clone()
    x.view(-1)[:moved] += 1
    assert torch.equal(carried_out("arcee_fusion", [source(x)], base, {}), x)


def test_arcee_fusion_takes_equal_importances_together() -> None:
    """A threshold that several elements have keeps all of them; of bf16 weights many are equally far."""
    base, x = torch.zeros(8), torch.tensor([1.0, 2, -2, 2, 2, 2, 5, -5])
    assert carried_out("arcee_fusion", [source(x)], base, {}).tolist() == [0, 2, -2, 2, 2, 2, 5, -5]


@pytest.mark.parametrize(("density", "gamma"), [(0.4, 0.1), (0.4, 0.0), (0.95, 0.2), (0.0, 0.1), (0.3, 0.7)])
@pytest.mark.parametrize("rescale", [False, True])
def test_breadcrumbs_drops_both_tails(density: float, gamma: float, rescale: bool) -> None:
    """Davari and Belilovsky 2023, equation 3; fewer outliers go where the density could not be reached otherwise."""
    base, x = random_tensor(0), random_tensor(1)
    result = carried_out(
        "breadcrumbs", [source(x, weight=0.5, density=density, gamma=gamma)], base, FAMILY | {"rescale": rescale}
    )
    delta = (x - base).double().flatten()
    count = delta.numel()
    kept, top = int(density * count), min(int(gamma * count), count - int(density * count))
    order = delta.abs().argsort(descending=True)
    chosen = torch.zeros_like(delta).index_fill_(0, order[top : top + kept], 1) * delta
    scale = float(delta.abs().sum() / chosen.abs().sum()) if rescale and kept else 1.0
    close(result.flatten(), base.double().flatten() + 0.5 * scale * chosen)


def test_breadcrumbs_keeps_everything_at_a_density_of_one() -> None:
    base, x = random_tensor(0), random_tensor(1)
    result = carried_out("breadcrumbs", [source(x, weight=1.0, density=1.0, gamma=0.5)], base, FAMILY)
    close(result, x.double())


def test_breadcrumbs_keeps_exactly_as_many_where_magnitudes_are_equal() -> None:
    delta = torch.tensor([1.0, -2, 2, 2, -2, 1, 3, 1])
    zero = torch.zeros(8)
    result = carried_out("breadcrumbs", [source(delta, weight=1.0, density=0.5, gamma=0.25)], zero, FAMILY)
    assert result.tolist() == [0, -2, 2, 2, 0, 0, 0, 1]


def test_breadcrumbs_ties_elects_signs() -> None:
    base, x, y = (random_tensor(seed) for seed in range(3))
    chosen = {"weight": 1.0, "density": 0.6, "gamma": 0.1}
    sources = [source(x, **chosen), source(y, **chosen)]
    alone = [
        carried_out("breadcrumbs", [one], torch.zeros(SHAPE), FAMILY)
        for one in (source(x - base, **chosen), source(y - base, **chosen))
    ]
    sign = (alone[0] + alone[1]).ge(0).float() * 2 - 1
    agreed = [torch.where(delta * sign > 0, delta, 0.0).double() for delta in alone]
    close(carried_out("breadcrumbs_ties", sources, base, FAMILY), base + agreed[0] + agreed[1])


def _probabilities(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """Deep et al. 2024, section 3.1: by a loop over rows."""
    rows = delta if delta.dim() > 1 else delta[None]
    spread = []
    for row in rows:
        rank = {index: place for place, index in enumerate(row.abs().argsort().tolist())}
        spread.append([density - epsilon + 2 * epsilon * rank[i] / (len(row) - 1) for i in range(len(row))])
    return torch.tensor(spread, dtype=torch.float64).view(delta.shape)


@pytest.mark.parametrize("shape", [SHAPE, (50,)])
@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_keeps_large_elements_with_a_higher_probability(method: str, shape: tuple[int, ...]) -> None:
    base, x = random_tensor(0, shape), random_tensor(1, shape)
    sources = [source(x, weight=1.0, density=0.6, epsilon=0.3)]
    result = carried_out(method, sources, base, FAMILY | {"rescale": True})
    delta = (x - base).double()
    kept = delta * source(x).draws.below(_probabilities(x - base, 0.6, 0.3))
    close(result, base + kept * delta.abs().sum() / kept.abs().sum())


def test_della_without_a_spread_is_dare() -> None:
    base, x = random_tensor(0), random_tensor(1)
    della = carried_out("della_linear", [source(x, weight=0.7, density=0.5, epsilon=0.0)], base, FAMILY)
    dare = carried_out("dare_linear", [source(x, weight=0.7, density=0.5)], base, FAMILY)
    assert torch.equal(della, dare)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_della_needs_no_ranks_to_keep_all_or_nothing(density: float) -> None:
    base, x = random_tensor(0, (3, 1)), random_tensor(1, (3, 1))
    result = carried_out("della", [source(x, weight=1.0, density=density, epsilon=0.1)], base, FAMILY)
    close(result, (x if density else base).double())


def test_della_keeps_elements_that_are_rows_of_their_own_with_the_density() -> None:
    """As in the weights of a convolution over time, channel by channel."""
    base, x = random_tensor(0, (30, 1, 4)), random_tensor(1, (30, 1, 4))
    della = carried_out("della_linear", [source(x, weight=0.7, density=0.5, epsilon=0.1)], base, FAMILY)
    dare = carried_out("dare_linear", [source(x, weight=0.7, density=0.5)], base, FAMILY)
    assert torch.equal(della, dare)


def test_della_keeps_as_often_as_it_is_to() -> None:
    """A million draws in rows of ten: the share kept at each rank lies within five standard deviations."""
    delta = random_tensor(1, (100_000, 10))
    probabilities = _probabilities(torch.arange(10.0)[None], 0.5, 0.2).flatten()
    ones = torch.ones_like(delta)
    ranked = delta.abs().argsort(dim=1).argsort(dim=1)
    zero = torch.zeros_like(delta)
    result = carried_out("della_linear", [source(delta, weight=1.0, density=0.5, epsilon=0.2)], zero, FAMILY)
    kept = torch.zeros(10, dtype=torch.float64).index_add_(
        0, ranked.flatten(), (ones * (result != 0)).double().flatten()
    )
    deviation = (100_000 * probabilities * (1 - probabilities)).sqrt()
    assert bool(((kept - 100_000 * probabilities).abs() <= 5 * deviation).all())
