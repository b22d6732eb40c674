"""The frame of a chart: horizontal grid lines with their values, and names of the axes."""

from markupsafe import Markup

from evomerge_worker.report.scale import Scale
from evomerge_worker.report.svg import element


def grid(y: Scale, left: float, right: float) -> Markup:
    """A line and its value at each tick of a vertical scale."""
    return Markup("").join(
        element("line", class_="grid", x1=left, x2=right, y1=y(value), y2=y(value))
        + text(left - 8, y(value) + 4, label, "tick end")
        for value, label in y.ticks()
    )


def text(x: float, y: float, words: str, class_: str) -> Markup:
    """Words at a point."""
    return element("text", words, x=float(x), y=float(y), class_=class_)


def spread(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Heights for labels, as near to the `wanted` ones as a distance of `gap` within [low, high] allows.

    Heights come back in the order of `wanted`; where there is no room for all, they overlap evenly.
    """
    if not wanted:
        return []
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    placed = dict.fromkeys(order, low)
    floor = low
    for i in order:
        placed[i] = floor = max(wanted[i], floor)
        floor += gap
    ceiling = high
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return [placed[i] for i in range(len(wanted))]
