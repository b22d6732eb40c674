"""What a person sees while a run goes: a live picture in a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Mapping

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from evomerge_contract.candidate import Candidate
from evomerge_contract.manifest import EvoMerge
from evomerge_contract.report import ConcludeResult, Interval, ScoreRow
from evomerge_operator.local.directory import RunDirectory
from evomerge_operator.plan import BASELINES, Key
from evomerge_operator.prepared import Run, commits

_BAR_WIDTH = 24
_LINE_EVERY_SECONDS = 10.0
_PICTURE_EVERY_SECONDS = 0.2
_SPARKS = "▁▂▃▄▅▆▇█"


class Terminal:
    """Watches a run; see `evomerge_operator.local.run.Watcher`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._began = self._last_line = time.monotonic()
        self._found_at_start = 0
        self._last_picture = 0.0
        self._seen = -1
        self._workers = 1

    def preparing(self, manifest: EvoMerge, directory: RunDirectory, workers: int) -> None:
        """Say what is about to run and where."""
        spec = manifest.spec
        names = ", ".join(m.name for m in spec.models) + (" · base" if spec.base else "")
        self._workers = workers
        self._console.print(f"[bold]{manifest.metadata.name}[/]  {names}", highlight=False)
        plural = "" if workers == 1 else "s"
        self._console.print(
            f"checking sources and data; {workers} worker{plural}; directory {directory.path}",
            style="dim",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def searching(self, run: Run, finished: Mapping[Key, Candidate]) -> None:
        """Say what models at the hub are pinned to, and begin the live picture."""
        for asked, found in commits(run.prepared).items():
            self._console.print(f"{asked} is now {found}", highlight=False, markup=False, soft_wrap=True)
        self._began = time.monotonic()
        self._found_at_start = len(_searched(run, finished))
        if self._found_at_start:
            self._console.print(f"going on after {self._found_at_start} candidates found in the log", highlight=False)
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=False)
            self._live.start()
        else:
            self._console.print(headline(run), highlight=False)

    def moved(self, run: Run, finished: Mapping[Key, Candidate], running: int) -> None:
        """Show how far the search is."""
        now = time.monotonic()
        if self._live is not None:
            if not running or now - self._last_picture >= _PICTURE_EVERY_SECONDS:
                self._last_picture = now
                self._live.update(self._picture(run, finished, running))
            return
        done = len(_searched(run, finished))
        ended = done == run.candidates and done != self._seen
        if ended or (now - self._last_line >= _LINE_EVERY_SECONDS and done != self._seen):
            self._seen, self._last_line = done, now
            self._console.print(f"{self._counts(run, finished, running)}  {_scores(run, finished)}", highlight=False)

    def concluding(self, finalists: int, baselines: int, masks: int) -> None:
        """Say that the search is over; finalists are scored with so many masks."""
        self.close()
        each = f" with {masks} mask seeds each" if masks > 1 else ""
        text = (
            f"scoring {finalists} finalists on select items{each}, the winner and {baselines} baselines on test items"
        )
        self._console.print(text, style="dim", highlight=False)

    def done(self, run: Run, conclusion: ConcludeResult, directory: RunDirectory) -> None:
        """Show the table and where everything is."""
        self._console.print(result_table(conclusion))
        for sentence in (verdict(conclusion), *mask_lines(conclusion)):
            self._console.print(sentence, highlight=False)
        for label, path in (("winner", directory.best), ("recipe", directory.recipe), ("report", directory.report)):
            # One path a line and never wrapped, so that it can be copied.
            self._console.print(f"{label}   {path}", highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Leave the terminal as it was found."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _picture(self, run: Run, finished: Mapping[Key, Candidate], running: int) -> RenderableType:
        searched = _searched(run, finished)
        filled = round(_BAR_WIDTH * len(searched) / run.candidates)
        bar = Text("█" * filled, style="green") + Text("░" * (_BAR_WIDTH - filled), style="dim")
        return Group(
            Text(headline(run)),
            bar + Text("  " + self._counts(run, finished, running)),
            Text(f"{_scores(run, finished)}   {_sparkline(searched)}"),
        )

    def _counts(self, run: Run, finished: Mapping[Key, Candidate], running: int) -> str:
        searched = _searched(run, finished)
        failed = sum(c.outcome == "Failed" for c in searched)
        parts = [f"{len(searched)}/{run.candidates}", f"{running} running"]
        if failed:
            parts.append(f"{failed} failed")
        timed = [c.seconds["total"] for c in searched if "total" in c.seconds]
        if timed:
            parts.append(f"{sum(timed) / len(timed):.2g} s each")
        new = len(searched) - self._found_at_start
        left = run.candidates - len(searched)
        if new > self._workers and left:
            parts.append(f"{_duration((time.monotonic() - self._began) / new * left)} left")
        return "   ".join(parts)


def headline(run: Run) -> str:
    """Name, stage, method, dimensions and algorithm in one line."""
    stage = run.manifest.spec.stages[0]
    return (
        f"{run.manifest.metadata.name} · stage {stage.name} · {stage.parameter_space.method} · "
        f"{len(run.space.genes)} dimensions · {stage.search.algorithm}"
    )


def _searched(run: Run, finished: Mapping[Key, Candidate]) -> list[Candidate]:
    return [candidate for key, candidate in finished.items() if key.stage == run.stage]


def _scores(run: Run, finished: Mapping[Key, Candidate]) -> str:
    fitness = [c.fitness for c in _searched(run, finished) if c.fitness is not None]
    parts = [f"best {max(fitness):.3f}"] if fitness else []
    sources: list[tuple[float, str]] = []
    average = ""
    for index, baseline in enumerate(run.baselines):
        candidate = finished.get(Key(BASELINES, index))
        if candidate is None or candidate.fitness is None:
            continue
        if baseline.role == "source":
            sources.append((candidate.fitness, baseline.name))
        elif baseline.role == "average":
            average = f"plain average {candidate.fitness:.3f}"
    if len(sources) == sum(b.role == "source" for b in run.baselines):
        parts.append("best source {:.3f} ({})".format(*max(sources)))
    return "   ".join([*parts, average] if average else parts)


def _sparkline(searched: list[Candidate]) -> str:
    """The best fitness so far, over the search, in ten characters."""
    best, line = float("-inf"), []
    for candidate in sorted(searched, key=lambda c: c.index):
        best = max(best, float("-inf") if candidate.fitness is None else candidate.fitness)
        line.append(best)
    line = [v for v in line if v > float("-inf")]
    if len(line) < 2:
        return ""
    points = [line[i * (len(line) - 1) // 9] for i in range(10)]
    low, span = points[0], (points[-1] - points[0]) or 1.0
    return "".join(_SPARKS[int((p - low) / span * (len(_SPARKS) - 1))] for p in points)


def result_table(conclusion: ConcludeResult) -> Table:
    """Winner and baselines on test items, in total and per skill."""
    skills = list(dict.fromkeys(skill for row in conclusion.test for skill in row.skills))
    table = Table(title=f"On {conclusion.test_items} test items", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for header in ["total", "95 % interval", *skills, "winner minus this"]:
        table.add_column(header, justify="right")
    for row in conclusion.test:
        cells = [row_name(row), f"{row.score:.3f}", _interval(row.interval)]
        cells += [f"{row.skills[s]:.3f}" if s in row.skills else "" for s in skills]
        margin = row.winner_minus
        cells.append("" if margin is None else f"{margin:+.3f} {_interval(row.winner_minus_interval)}")
        table.add_row(*cells, style="bold" if row.role == "winner" else None)
    return table


def row_name(row: ScoreRow) -> str:
    """The row's name, with what a reader must know of it."""
    return {"source": f"source {row.name}", "base": "base (not in the pool)"}.get(row.role, row.name)


def verdict(conclusion: ConcludeResult) -> str:
    """Did it work, in one sentence."""
    row = next(r for r in conclusion.test if r.name == conclusion.best_source and r.role == "source")
    margin = f"{row.winner_minus:+.3f} {_interval(row.winner_minus_interval)}"
    if conclusion.beats_best_source:
        return f"The winner, candidate {conclusion.winner}, beats the best source ({row.name}) by {margin}."
    if (row.winner_minus or 0.0) > 0:
        return f"The winner is ahead of the best source ({row.name}), but not beyond chance: {margin}."
    return f"Nothing beat the best source ({row.name}): {margin}."


def mask_lines(conclusion: ConcludeResult) -> list[str]:
    """The winner's scores with other masks, and whether they are worth a warning; nothing where none are drawn."""
    chosen, seeds = conclusion.chosen, conclusion.mask_seeds
    if chosen is None or chosen.mask_scores is None or chosen.spread is None or not seeds:
        return []
    scores = " ".join(f"{score:.3f}" for score in chosen.mask_scores)
    given = ", ".join(str(seed) for seed in seeds)
    told = [
        f"With mask seeds {given} (the first is exported) it scores {scores} on select items: mean {chosen.score:.3f}, "
        f"spread {chosen.spread:.3f}."
    ]
    if conclusion.within_luck:
        told.append("That spread is larger than its lead over the best source: the lead may be luck of the draw.")
    return told


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"[{interval.low:.2f}, {interval.high:.2f}]"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def stdout_console() -> Console:
    """The console of standard output; wide enough for the table where the output is a file."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120)
