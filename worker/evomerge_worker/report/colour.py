"""Which colour a parameter's value has: classes of the page's style sheet, safe for colour-blind readers."""

from collections.abc import Iterable
from dataclasses import dataclass

from evomerge_contract.manifest import Parameter

DIVERGING = 11
SEQUENTIAL = 9


@dataclass(frozen=True)
class Shade:
    """A colour scale over [low, high].

    With a `centre` it diverges from there to both sides, equally fast (classes d0 to d10); without, it goes from pale
    to strong (q0 to q8).
    """

    low: float
    high: float
    centre: float | None = None

    def css(self, value: float) -> str:
        """The class of a value; beyond the ends, the ends' own."""
        if self.centre is None:
            share = (value - self.low) / ((self.high - self.low) or 1.0)
            return f"q{_step(share * (SEQUENTIAL - 1), SEQUENTIAL)}"
        reach = max(self.high - self.centre, self.centre - self.low) or 1.0
        share = (value - self.centre) / reach
        return f"d{_step((share + 1) / 2 * (DIVERGING - 1), DIVERGING)}"

    def legend(self) -> list[str]:
        """The classes that occur between low and high, in order."""
        steps = [self.low + (self.high - self.low) * k / 40 for k in range(41)]
        return list(dict.fromkeys(self.css(v) for v in steps))


def shade(parameter: Parameter | None, models: int, values: Iterable[float]) -> Shade:
    """The scale of a parameter: around 1/n where values sum to one, around 0 where both signs occur.

    The bounds are the manifest's; where it gives none, as for a fixed value, the `values` (at least one) say.
    """
    given = [float(b) for b in (parameter.min, parameter.max) if b is not None] if parameter else []
    found = given if len(given) == 2 else [*given, *values]
    low, high = min(found), max(found)
    if parameter is not None and parameter.sums_to_one:
        return Shade(low, high, 1 / models)
    return Shade(low, high, 0.0 if low < 0 < high else None)


def _step(position: float, steps: int) -> int:
    return min(steps - 1, max(0, round(position)))
