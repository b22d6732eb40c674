"""Genomes over time: how the genes settled. A row is a gene, a column the best candidate of a stretch of the search."""

from collections.abc import Mapping
from itertools import groupby

from markupsafe import Markup

from evomerge_contract.candidate import Candidate, GeneLabel, Genome
from evomerge_contract.text import count
from evomerge_worker.report.axes import text
from evomerge_worker.report.colour import Shade
from evomerge_worker.report.svg import element, number, picture

WIDTH = 960.0
LEFT, RIGHT, LAST = 180.0, 880.0, 896.0
LAST_WIDTH = 44.0
TOP = 6.0
HEADER = 22.0
MOST_COLUMNS = 60
MOST_CELLS = 12_000
TALLEST, SHORTEST = 18.0, 3.0
WANTED_HEIGHT = 900.0
LETTERS = 24
OVERLAP = 0.6
"""Neighbouring cells overlap a little, or the page would shine through between them."""


def stretches(candidates: list[Candidate], genes: int) -> list[tuple[int, Candidate | None]]:
    """Cut the search into even stretches; for each its first index and its best candidate (None: all failed)."""
    end = max((c.index for c in candidates), default=-1) + 1
    columns = max(1, min(end, MOST_COLUMNS, MOST_CELLS // max(1, genes)))
    best: list[Candidate | None] = [None] * columns
    for candidate in sorted(candidates, key=lambda c: c.index):
        column = candidate.index * columns // end
        held = best[column]
        if candidate.fitness is not None and (held is None or candidate.fitness > (held.fitness or 0.0)):
            best[column] = candidate
    return [(-(-k * end // columns), candidate) for k, candidate in enumerate(best)]


def genome_chart(
    genes: list[GeneLabel],
    shades: Mapping[str, Shade],
    columns: list[tuple[int, Candidate | None]],
    last: tuple[str, Genome],
) -> Markup:
    """The chart of at least one gene. `last` is a wider column of its own, such as the winner, with its heading."""
    parameters = list(dict.fromkeys(g.parameter for g in genes))
    models = list(dict.fromkeys(g.model for g in genes))
    rows = sorted(enumerate(genes), key=lambda r: (parameters.index(r[1].parameter), models.index(r[1].model), r[0]))
    blocks = [(name, list(members)) for name, members in groupby(rows, key=lambda r: _block(r[1]))]
    height = min(TALLEST, max(SHORTEST, WANTED_HEIGHT / len(genes)))
    cells: dict[str, list[str]] = {}
    words: list[Markup] = []
    top = TOP
    for name, members in blocks:
        words.append(text(LEFT, top + 15, name, "label strong"))
        top += HEADER
        words += _row_labels([gene.group for _, gene in members], top, height)
        for row, (position, gene) in enumerate(members):
            _add_row(cells, position, shades[gene.parameter], columns, last[1], top + (row + 0.5) * height)
        top += len(members) * height + 4
    stroke = height - 1 if height > 8 else height
    drawn = [
        element("path", class_=f"cells {css}", d="".join(d), stroke_width=stroke) for css, d in sorted(cells.items())
    ]
    label = f"{count(len(genes), 'gene')} in the best candidate of each of {len(columns)} stretches of the search."
    return picture(WIDTH, top + 44, label, *drawn, *words, _time_axis(columns, last[0], top + 16))


def _block(gene: GeneLabel) -> str:
    """What the rows of one block have in common."""
    return gene.parameter if gene.model is None else f"{gene.parameter} of {gene.model}"


def _add_row(
    cells: dict[str, list[str]],
    position: int,
    shade: Shade,
    columns: list[tuple[int, Candidate | None]],
    last: Genome,
    y: float,
) -> None:
    """Add the cells of the gene at `position` to the paths of their colours, neighbours of one colour as one stroke."""
    width = (RIGHT - LEFT) / len(columns)
    colours = [shade.css(c.genome[position]) if c is not None and c.genome else None for _, c in columns]
    at = 0
    for css, same in groupby(colours):
        length = len(list(same))
        if css is not None:
            cells.setdefault(css, []).append(
                f"M{number(LEFT + at * width)} {number(y)}h{number(length * width + OVERLAP)}"
            )
        at += length
    cells.setdefault(shade.css(last[position]), []).append(f"M{number(LAST)} {number(y)}h{number(LAST_WIDTH)}")


def _row_labels(groups: list[str], top: float, height: float) -> list[Markup]:
    """Every row's group where rows are tall enough, else the first's and the last's, else none."""
    rows = list(range(len(groups)))
    if height < 11:
        rows = [0, len(groups) - 1] if len(groups) * height >= 26 else []
    return [text(LEFT - 10, top + (r + 0.5) * height + 4, _short(groups[r]), "tick end") for r in rows]


def _time_axis(columns: list[tuple[int, Candidate | None]], heading: str, y: float) -> Markup:
    width = (RIGHT - LEFT) / len(columns)
    shown = sorted({k * (len(columns) - 1) // 4 for k in range(4)})
    return Markup("").join(
        [
            *(text(LEFT + k * width, y, count(columns[k][0]), "tick") for k in shown),
            text(LEFT + (RIGHT - LEFT) / 2, y + 20, "candidate, in the order of the search", "label middle"),
            text(LAST + LAST_WIDTH / 2, y, heading, "label strong middle"),
        ]
    )


def _short(words: str) -> str:
    return words if len(words) <= LETTERS else words[: LETTERS - 1] + "…"
