"""The random draws of DARE and DELLA."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from evomerge_worker.merge.draws import GROUP, STEPS, Draws, limit_of

CPU = torch.device("cpu")


def _words(draws: Draws, counter: int) -> tuple[int, int]:
    """The two words of 32 bits of one counter, put together again."""
    group, place = divmod(counter, GROUP // 4)
    numbers = draws.numbers(group * GROUP, GROUP, CPU).view(4, -1)[:, place].tolist()
    return numbers[0] | numbers[1] << 16, numbers[2] | numbers[3] << 16


def _keep(density: float, seed: int = 0, model: str = "m", tensor: str = "t", count: int = 81) -> Tensor:
    return Draws.of(seed, model, tensor).numbers(0, count, CPU) < limit_of(density)


def test_the_generator_is_threefry_with_13_rounds() -> None:
    """The known answer of its authors for key and counter zero."""
    assert _words(Draws((0, 0)), 0) == (0x9D1C5EC6, 0x8BD50731)


def test_the_generator_is_the_published_one_for_any_key_and_counter() -> None:
    """Salmon et al. 2011, section 4.2, in plain numbers."""
    turns, mask = (13, 15, 26, 6, 17, 29, 16, 24), 0xFFFFFFFF
    for key, counter in (((1, 2), 5), ((0xFFFFFFFF, 0x9E3779B9), (1 << 32) + 77), ((7, 0x80000000), 123_456)):
        keys = (*key, 0x1BD11BDA ^ key[0] ^ key[1])
        a, b = (counter & mask) + keys[0] & mask, (counter >> 32) + keys[1] & mask
        for turn in range(13):
            a = a + b & mask
            b = (b << turns[turn % 8] | b >> 32 - turns[turn % 8]) & mask ^ a
            if turn % 4 == 3:
                step = turn // 4 + 1
                a, b = a + keys[step % 3] & mask, b + keys[(step + 1) % 3] + step & mask
        assert _words(Draws(key), counter) == (a, b)


def test_any_chunk_has_the_draws_of_the_whole() -> None:
    draws = Draws.of(3, "model", "tensor")
    whole = draws.numbers(0, 5000, CPU)
    assert torch.equal(whole[GROUP * 3 : GROUP * 3 + 1000], draws.numbers(GROUP * 3, 1000, CPU))
    assert int(whole.min()) >= 0
    assert int(whole.max()) < 65536


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.integers(0, 2**31 - 1))
def test_a_mask_holds_every_mask_of_lower_density(one: float, other: float, seed: int) -> None:
    low, high = sorted((one, other))
    sparse, dense = (_keep(density, seed) for density in (low, high))
    assert not bool((sparse & ~dense).any())


def test_masks_are_a_function_of_seed_model_and_tensor_alone() -> None:
    """Golden bits: they must be the same on every machine and in every version, or no search could be resumed."""
    mask = _keep(0.5, 7, "model", "model.layers.0.mlp.up_proj.weight", count=32)
    assert "".join("01"[int(k)] for k in mask) == "01001111010111000011110101111101"
    for other in ((8, "model", "model.layers.0.mlp.up_proj.weight"), (7, "other", "model.layers.0.mlp.up_proj.weight"),
                  (7, "model", "model.layers.1.mlp.up_proj.weight")):  # fmt: skip
        assert not torch.equal(mask, _keep(0.5, *other, count=32))


@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.5, 0.93, 1.0])
def test_each_element_is_kept_with_the_probability_asked_for(density: float) -> None:
    """A million draws: the share kept lies within five standard deviations and half a step."""
    n = 1_000_000
    kept = int(_keep(density, count=n).sum())
    assert abs(kept - density * n) <= 5 * (n * density * (1 - density)) ** 0.5 + n / STEPS / 2


def test_no_density_above_zero_keeps_nothing() -> None:
    assert limit_of(1e-9) > 0
    assert limit_of(0.0) == 0
    assert limit_of(1.0) == 65536


def test_elements_models_and_tensors_are_drawn_independently() -> None:
    """Masks of one half: any two agree in half of a million elements, neighbours included, within five deviations."""
    n = 1_000_000
    mask = _keep(0.5, count=n)
    others = [
        _keep(0.5, 1, count=n),
        _keep(0.5, 0, "other", count=n),
        _keep(0.5, 0, "m", "other", count=n),
        mask.roll(1),
        mask.roll(64),
        mask.roll(128),
        mask.roll(256),
    ]
    for other in others:
        assert abs(int((mask == other).sum()) - n / 2) <= 5 * (n / 4) ** 0.5


def test_a_probability_of_each_element_of_its_own() -> None:
    rows = torch.linspace(0.05, 0.95, 40).unsqueeze(1).expand(40, 5000)
    draws = Draws.of(0, "m", "t")
    assert torch.equal(draws.below(rows)[32:], draws.below(rows[32:], 32 * 5000))  # which GROUP divides
    kept = draws.below(rows).float().mean(dim=1)
    assert bool(((kept - rows[:, 0]).abs() < 5 * (0.25 / 5000) ** 0.5).all())
