"""Search against select against test: how much of the finalists' fitness was luck."""

from markupsafe import Markup

from evomerge_contract.report import ConcludeResult
from evomerge_contract.text import interval, score
from evomerge_worker.report.axes import grid, text
from evomerge_worker.report.scale import fitting
from evomerge_worker.report.svg import element, number, picture

WIDTH, HEIGHT = 420.0, 270.0
LEFT, TOP, BOTTOM = 56.0, 14.0, 226.0
COLUMNS = (84.0, 234.0, 384.0)


def finalists_chart(conclusion: ConcludeResult) -> Markup:
    """A line for each finalist from search to select items; the winner's goes on to test items."""
    winner = next(r for r in conclusion.test if r.role == "winner")
    ends = [v for r in conclusion.select for v in (r.fitness, r.score, *(r.mask_scores or []))]
    y = fitting([*ends, winner.interval.low, winner.interval.high, winner.score], BOTTOM, TOP)
    search, select, test = COLUMNS
    lines = []
    for row in sorted(conclusion.select, key=lambda r: r.index == conclusion.winner):
        won = row.index == conclusion.winner
        points = [(search, y(row.fitness)), (select, y(row.score))] + ([(test, y(winner.score))] if won else [])
        path = "M" + "L".join(f"{number(a)} {number(b)}" for a, b in points)
        kind = "winner" if won else "finalist"
        if row.mask_scores:
            low, high = y(min(row.mask_scores)), y(max(row.mask_scores))
            lines.append(element("line", class_=f"bar {kind}", x1=select, x2=select, y1=low, y2=high))
        lines.append(element("path", class_=f"slope {kind}", d=path))
        lines += [element("circle", class_=f"dot {kind}", cx=a, cy=b, r=4) for a, b in points]
    low, high = y(winner.interval.low), y(winner.interval.high)
    return picture(
        WIDTH,
        HEIGHT,
        f"Scores of the finalists on search and on select items; the winner reaches {score(winner.score)} "
        f"{interval(winner.interval)} on test items.",
        grid(y, LEFT, WIDTH - 12),
        element("line", class_="bar winner", x1=test, x2=test, y1=low, y2=high),
        *lines,
        *(
            text(a, BOTTOM + 28, name, "label middle")
            for a, name in zip(COLUMNS, ("search", "select", "test"), strict=True)
        ),
    )
