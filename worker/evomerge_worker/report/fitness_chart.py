"""Fitness over candidates: every candidate, the best so far, and the baselines as lines."""

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from evomerge_contract.candidate import Candidate
from evomerge_contract.text import count, score
from evomerge_worker.report.axes import grid, spread, text
from evomerge_worker.report.scale import Scale, fitting
from evomerge_worker.report.svg import element, number, picture

WIDTH, HEIGHT = 960.0, 420.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 770.0, 12.0, 352.0
FAILURES = 368.0
MOST_POINTS = 2000
MOST_LABELS = 14
LABEL_LETTERS = 22


@dataclass(frozen=True)
class Line:
    """A baseline's fitness on search items; `role` decides how it is drawn."""

    label: str
    role: str
    fitness: float


def thinned(candidates: list[Candidate], winner: int | None) -> list[Candidate]:
    """The candidates to draw, at most about MOST_POINTS: all that improved on the best before them, the winner (by its
    index), and an even sample of the rest."""
    scored = [c for c in candidates if c.fitness is not None]
    if len(scored) <= MOST_POINTS:
        return scored
    best = {c.index for c in improvements(scored)}
    keep = {c.index for c in scored if c.index == winner or c.index in best}
    rest = [c for c in scored if c.index not in keep]
    room = max(1, MOST_POINTS - len(keep))
    sample = {rest[i * len(rest) // room].index for i in range(room)} if rest else set()
    return [c for c in scored if c.index in keep or c.index in sample]


def improvements(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates that were better than all before them."""
    best: list[Candidate] = []
    for candidate in candidates:
        if candidate.fitness is not None and (not best or candidate.fitness > (best[-1].fitness or 0.0)):
            best.append(candidate)
    return best


def fitness_chart(candidates: list[Candidate], lines: list[Line], winner: int | None, budget: int) -> Markup:
    """The chart. At least one candidate or line must have a fitness. `winner` is an index."""
    scored = [c for c in candidates if c.fitness is not None]
    failed = [c.index for c in candidates if c.fitness is None]
    last = max([budget - 1, 1, *(c.index for c in candidates)])
    x = Scale(0, last, LEFT + 8, RIGHT - 8)
    y = fitting([c.fitness or 0.0 for c in scored] + [line.fitness for line in lines], BOTTOM, TOP)
    best = improvements(scored)
    said = f"best {score(best[-1].fitness or 0.0)} at candidate {best[-1].index}" if best else "none scored"
    label = f"Fitness on search items of {count(len(candidates), 'candidate')} by index: {said}; {len(failed)} failed."
    return picture(
        WIDTH,
        HEIGHT,
        label,
        grid(y, LEFT, RIGHT),
        _index_axis(x, last),
        _failures(failed, x),
        _baselines(lines, y),
        element("g", *(_point(c, x, y) for c in thinned(scored, winner)), class_="points"),
        _best_line(best, x, y, max((c.index for c in scored), default=0)),
        _winner([c for c in scored if c.index == winner], x, y),
    )


def _index_axis(x: Scale, last: int) -> Markup:
    ticks = [v for v, _ in Scale(0, last, 0, 1).ticks() if v == int(v)]
    return Markup("").join(
        [
            element("line", class_="axis", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM),
            *(text(x(v), BOTTOM + 40, count(int(v)), "tick middle") for v in ticks),
            text((LEFT + RIGHT) / 2, BOTTOM + 60, "candidate, in the order of the search", "label middle"),
        ]
    )


def _point(candidate: Candidate, x: Scale, y: Scale) -> Markup:
    fitness = candidate.fitness or 0.0
    return element(
        "circle",
        element("title", f"candidate {candidate.index}: {score(fitness)}"),
        cx=x(candidate.index),
        cy=y(fitness),
        r=2.6,
    )


def _best_line(best: list[Candidate], x: Scale, y: Scale, last: int) -> Markup:
    """Steps up to the `last` index: a new best holds until the next."""
    if not best:
        return Markup("")
    steps = "".join(f"H{number(x(c.index))}V{number(y(c.fitness or 0.0))}" for c in best[1:])
    start = f"M{number(x(best[0].index))} {number(y(best[0].fitness or 0.0))}"
    return element("path", class_="best", d=f"{start}{steps}H{number(x(last))}")


def _winner(found: list[Candidate], x: Scale, y: Scale) -> Markup:
    return Markup("").join(
        element(
            "circle",
            element("title", f"the winner, candidate {c.index}: {score(c.fitness or 0.0)}"),
            class_="ring",
            cx=x(c.index),
            cy=y(c.fitness or 0.0),
            r=7.0,
        )
        for c in found
    )


def _failures(indices: list[int], x: Scale) -> Markup:
    """A cross below the axis for each failure; those on one pixel share theirs."""
    if not indices:
        return Markup("")
    crosses = "".join(
        f"M{at - 3} {number(FAILURES - 3)}l6 6m0 -6l-6 6" for at in sorted({round(x(i)) for i in indices})
    )
    return element("path", class_="failed", d=crosses) + text(RIGHT + 10, FAILURES + 4, "failed", "label failed")


def _baselines(lines: list[Line], y: Scale) -> Markup:
    """All lines; labels for the highest of each kind while there is room."""
    drawn = [
        element("line", class_=f"line {b.role}", x1=LEFT, x2=RIGHT, y1=y(b.fitness), y2=y(b.fitness)) for b in lines
    ]
    labelled = sorted(lines, key=lambda b: (b.role == "source", -b.fitness))[:MOST_LABELS]
    heights = spread([y(b.fitness) for b in labelled], 17, TOP + 4, BOTTOM)
    for baseline, height in zip(labelled, heights, strict=True):
        at = y(baseline.fitness)
        path = f"M{number(RIGHT)} {number(at)}L{number(RIGHT + 8)} {number(height)}"
        drawn.append(element("path", class_=f"leader {baseline.role}", d=path))
        drawn.append(
            element(
                "text",
                element("title", f"{baseline.label}: {score(baseline.fitness)}"),
                _short(baseline.label),
                " ",
                element("tspan", score(baseline.fitness), class_="value"),
                x=RIGHT + 12,
                y=height + 4,
                class_=f"label {baseline.role}",
            )
        )
    return Markup("").join(drawn)


def _short(label: str) -> str:
    return label if len(label) <= LABEL_LETTERS else label[: LABEL_LETTERS - 1] + "…"
