"""What of a task vector is kept, element by element."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge_worker.merge.draws import Draws

BYTE = 8
"""Elements whose bits make up a byte."""


@dataclass(frozen=True, slots=True)
class AtLeast:
    """Keep magnitudes above `threshold`, and of those equal to it the first `ties`."""

    threshold: float
    ties: int


@dataclass(frozen=True, slots=True)
class Between:
    """Keep magnitudes from `low` to `high`: of those equal to `low` not the first `skipped`, and of those equal to
    `high` only the first `ties`."""

    low: float
    skipped: int
    high: float
    ties: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """Keep the elements whose draw, of 16 bits, is below `limit`."""

    draws: Draws
    limit: int


@dataclass(frozen=True, slots=True)
class Chosen:
    """Keep the elements whose bit is set: uint8 [ceil(n / 8)], the first element the lowest bit of the first byte."""

    bits: Tensor


Thinning = AtLeast | Between | Drawn | Chosen | None
"""None keeps all."""


class Sieve:
    """Says where the parts of a vector are kept.

    Where equals are counted (AtLeast, Between), it is to be asked for one part after the other, from the first.
    """

    def __init__(self, thinning: Thinning) -> None:
        self._thinning = thinning
        self._passed = [0, 0]  # of the elements equal to a threshold; where there are two, to the higher one

    def keep(self, vector: Tensor, start: int) -> Tensor:
        """A boolean vector for the part, in float32, that begins at the element `start`, a multiple of GROUP.

        Only Drawn and Chosen ask where it begins.
        """
        match self._thinning:
            case None:
                return torch.ones_like(vector, dtype=torch.bool)
            case AtLeast(threshold, ties):
                magnitudes = vector.abs()
                keep = magnitudes > threshold
                first, _ = self._split(magnitudes == threshold, ties, 0)
                keep[first] = True
            case Between(low, skipped, high, ties):
                magnitudes = vector.abs()
                keep = (magnitudes >= low) & (magnitudes <= high)
                first, _ = self._split(magnitudes == low, skipped, 0)
                _, last = self._split(magnitudes == high, ties, 1)
                keep[first] = keep[last] = False
            case Drawn(draws, limit):
                keep = draws.numbers(start, len(vector), vector.device) < limit
            case Chosen(bits):
                keep = _unpacked(bits[start // BYTE :], len(vector))
        return keep

    def thinned(self, vector: Tensor, start: int) -> Tensor:
        """The part, zero where it is not kept."""
        return vector if self._thinning is None else torch.where(self.keep(vector, start), vector, 0.0)

    def _split(self, equal: Tensor, number: int, end: int) -> tuple[Tensor, Tensor]:
        """The places of the equal elements: of the first `number` in the whole vector, and of the others."""
        places = equal.nonzero().flatten()
        left = max(0, number - self._passed[end])
        self._passed[end] += len(places)
        return places[:left], places[left:]


def choose(keeps: Iterable[Tensor], like: Tensor) -> Chosen:
    """What keeps the elements of a tensor of the shape of `like` for which the boolean vectors `keeps`, one after the
    other, are true. Each but the last has whole bytes of elements."""
    bits, done = torch.empty(-(-like.numel() // BYTE), dtype=torch.uint8, device=like.device), 0
    for keep in keeps:
        some = _packed(keep)
        bits[done : done + len(some)] = some
        done += len(some)
    return Chosen(bits)


def _packed(keep: Tensor) -> Tensor:
    """A boolean vector as Chosen has it."""
    bits = torch.nn.functional.pad(keep.to(torch.uint8), (0, -len(keep) % BYTE)).view(-1, BYTE)
    return (bits << _places(keep.device)).sum(dim=1, dtype=torch.uint8)


def _unpacked(bits: Tensor, count: int) -> Tensor:
    """The first `count` elements of what was packed."""
    some = bits[: -(-count // BYTE)]
    return (some[:, None] >> _places(bits.device) & 1).bool().flatten()[:count]


def _places(device: torch.device) -> Tensor:
    return torch.arange(BYTE, dtype=torch.uint8, device=device)
