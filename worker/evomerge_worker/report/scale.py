"""From values to pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evomerge_contract.text import score

LEAST_ROOM = 0.001
"""Around the values, so that equal ones have a scale too; no score is more exact."""


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to pixels [start, end]; `log` spreads values that are all negative by order of magnitude."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, at = (_magnitude(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Some five round values within the range, each with its text."""
        return _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high)


def fitting(values: Sequence[float], start: float, end: float) -> Scale:
    """A scale that shows all `values` (at least one) with a little room, which never crosses zero.

    Perplexities, at least 1, count negatively and may span orders of magnitude: then the scale is logarithmic.
    """
    low, high = min(values), max(values)
    if high <= -1 and low / high > 10:
        return Scale(low * 1.1, high / 1.1, start, end, log=True)
    room = max(0.04 * (high - low), LEAST_ROOM)
    return Scale(
        low - room if low < 0 else max(0.0, low - room),
        high + room if high > 0 or low >= 0 else min(0.0, high + room),
        start,
        end,
    )


def _magnitude(value: float) -> float:
    return -math.log10(-value)


def _linear_ticks(low: float, high: float) -> list[tuple[float, str]]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.7)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(k * step, score(k * step, digits)) for k in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    lowest, highest = math.floor(math.log10(-high)), math.ceil(math.log10(-low))
    powers = range(lowest, highest + 1, max(1, (highest - lowest) // 5))
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    found = [-m * 10.0**p for p in powers for m in factors]
    return [(v, score(v, 0 if v <= -1 else 1)) for v in found if low <= v <= high]
