"""The table that answers whether it worked: winner, sources and the other baselines on test items."""

from dataclasses import dataclass

from markupsafe import Markup

from evomerge_contract.manifest import BASE, Objective
from evomerge_contract.metrics import METRICS
from evomerge_contract.report import ConcludeResult, ScoreRow
from evomerge_contract.text import listing, score
from evomerge_contract.verdict import winner_name
from evomerge_worker.report.interval_chart import interval_charts


@dataclass(frozen=True)
class Column:
    """A further figure of every row: an objective's score or a skill's; `best` is the best row's, the base apart."""

    label: str
    values: list[float | None]
    best: float | None

    def text(self, row: int) -> str:
        """The figure of a row, or a dash."""
        value = self.values[row]
        return "–" if value is None else score(value)

    def is_best(self, row: int) -> bool:
        """Whether no other row is better."""
        return self.best is not None and self.values[row] == self.best


@dataclass(frozen=True)
class Table:
    """Rows in the order winner, other stages' winners, sources by score, other baselines, the base; `labels` is what
    to call them."""

    rows: list[ScoreRow]
    labels: list[str]
    charts: list[Markup]
    objectives: list[Column]
    skills: list[Column]

    @property
    def sized(self) -> bool:
        """Whether rows tell of their models' sizes."""
        return any(row.layers is not None for row in self.rows)


_ORDER = ("winner", "stage", "source", "average", "default", "base")


def score_table(conclusion: ConcludeResult, objectives: list[Objective]) -> Table:
    """The table of a concluded run."""
    rows = sorted(conclusion.test, key=lambda r: (_ORDER.index(r.role), -r.score))
    lower = {o.name for o in objectives if METRICS[o.metric].lower_is_better}
    alone = len(objectives) == 1
    skills = list(dict.fromkeys(s for r in rows for s in r.skills))
    return Table(
        rows=rows,
        labels=[label(r, conclusion) for r in rows],
        charts=interval_charts(rows),
        # A single objective's score is the total, unless the total is its negative.
        objectives=[
            _column(f"{o.name} ({o.metric})" if o.name in lower else o.name, rows, o.name, o.name in lower, skill=False)
            for o in objectives
            if not alone or o.name in lower
        ],
        skills=[
            _column(s, rows, s, (objectives[0].name if alone else s.split("/")[0]) in lower, skill=True) for s in skills
        ],
    )


def label(row: ScoreRow, conclusion: ConcludeResult) -> str:
    """What a row is called."""
    if row.role == "winner":
        return winner_name(conclusion)
    if row.role == "stage":
        return f"winner of {row.name}"
    return BASE if row.role == "base" else row.name


def counted_negatively(objectives: list[Objective]) -> str:
    """What a reader of totals must know, "Perplexity counts negatively in the total"; empty where higher is better."""
    lower: list[str] = sorted({o.metric for o in objectives if METRICS[o.metric].lower_is_better})
    return f"{listing(lower).capitalize()} count{'s' * (len(lower) == 1)} negatively in the total" if lower else ""


def _column(heading: str, rows: list[ScoreRow], key: str, lower: bool, *, skill: bool) -> Column:
    values = [(r.skills if skill else r.scores).get(key) for r in rows]
    inside = [v for v, r in zip(values, rows, strict=True) if v is not None and r.role != "base"]
    best = (min if lower else max)(inside) if inside else None
    return Column(heading, values, best)
