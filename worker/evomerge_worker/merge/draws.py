"""The random draws of DARE and DELLA: a function of (seed, model, tensor) and an element's place alone.

They come from a counter-based generator, Threefry-2x32 with 13 rounds (Salmon et al. 2011, "Parallel random numbers: as
easy as 1, 2, 3"): no state, so the same on every device, in any order and for any chunking. One draw serves every
density: what a lower one keeps, a higher one keeps too. kernels.c has the same generator.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 256
"""Elements whose draws come from 64 counters: what is asked for begins at a multiple of it."""
STEPS = 1 << 12
"""A density is met to within half of one of so many steps (draws have 16 bits; norms are kept for each of these)."""

_COUNTERS = GROUP // 4
_TURNS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA


@dataclass(frozen=True, slots=True)
class Draws:
    """The draws for one tensor of one model: whole numbers of 16 bits, element by element."""

    key: tuple[int, int]

    @classmethod
    def of(cls, seed: int, model: str, tensor: str) -> "Draws":
        """`model` says which model it is, whatever a recipe calls it: its fingerprint."""
        digest = hashlib.sha256(f"{seed}\n{model}\n{tensor}".encode()).digest()
        return cls((int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")))

    def numbers(self, start: int, count: int, device: torch.device) -> Tensor:
        """Those of the elements [start, start + count), int32 in [0, 65536). `start` is a multiple of GROUP."""
        groups = -(-count // GROUP)
        counters = torch.arange(groups * _COUNTERS, dtype=torch.int64, device=device) + start // 4
        keys = [_signed(k) for k in (*self.key, _PARITY ^ self.key[0] ^ self.key[1])]
        a, b = counters.to(torch.int32).add_(keys[0]), (counters >> 32).to(torch.int32).add_(keys[1])
        for turn in range(13):
            bits = _TURNS[turn % 8]
            a.add_(b)
            b = (b << bits | (b >> (32 - bits) & (1 << bits) - 1)).bitwise_xor_(a)
            if turn % 4 == 3:
                step = turn // 4 + 1
                a.add_(keys[step % 3])
                b.add_(_signed(keys[(step + 1) % 3] + step))
        halves = torch.stack([a & 0xFFFF, a >> 16 & 0xFFFF, b & 0xFFFF, b >> 16 & 0xFFFF])
        return halves.view(4, groups, _COUNTERS).transpose(0, 1).reshape(-1)[:count]

    def below(self, chances: Tensor, start: int = 0) -> Tensor:
        """True with these chances, to within 2**-17, for the elements from `start` on."""
        before = start % GROUP
        numbers = self.numbers(start - before, before + chances.numel(), chances.device)[before:]
        return numbers.view(chances.shape) < (chances * 65536).round()


@dataclass(frozen=True, slots=True)
class Drawing:
    """The draws for all tensors of one model. It is asked for its fingerprint when the first one is drawn for."""

    seed: int
    fingerprint: Callable[[], str]

    def of(self, tensor: str) -> Draws:
        """Those for the tensor of that name."""
        return Draws.of(self.seed, self.fingerprint(), tensor)


def limit_of(density: float) -> int:
    """The draws below it, of 65,536, are those that `density` keeps. A density above 0 keeps at least one step."""
    steps = min(max(round(density * STEPS), int(density > 0)), STEPS)
    return steps * (65536 // STEPS)


def _signed(value: int) -> int:
    """The 32 bits of `value` as torch's int32 has them."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value
