"""A score and its 95 % interval as a dot on a line, one small picture a row, all rows on one scale."""

from markupsafe import Markup

from evomerge_contract.report import ScoreRow
from evomerge_contract.text import interval, score
from evomerge_worker.report.scale import fitting
from evomerge_worker.report.svg import element, picture

WIDTH = 190.0
HEIGHT = 22.0


def interval_charts(rows: list[ScoreRow]) -> list[Markup]:
    """A picture for each row; a thin line marks the winner's score in all of them."""
    ends = [end for r in rows for end in (r.interval.low, r.interval.high, r.score)]
    at = fitting(ends, 6.0, WIDTH - 6.0)
    guides = [r.score for r in rows if r.role == "winner"]
    middle = HEIGHT / 2
    return [
        picture(
            WIDTH,
            HEIGHT,
            f"{score(row.score)}, interval {interval(row.interval)}",
            *(element("line", class_="guide", x1=at(g), x2=at(g), y1=0, y2=HEIGHT) for g in guides),
            element(
                "line",
                class_=f"bar {row.role}",
                x1=at(row.interval.low),
                x2=at(row.interval.high),
                y1=middle,
                y2=middle,
            ),
            element("circle", class_=f"dot {row.role}", cx=at(row.score), cy=middle, r=4),
            class_="interval",
        )
        for row in rows
    ]
