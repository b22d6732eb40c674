"""What a person sees while a run goes: a live picture in a terminal, a line now and then elsewhere."""

import sys
import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from evomerge_contract.candidate import Candidate
from evomerge_contract.manifest import EvoMerge
from evomerge_contract.report import ConcludeResult
from evomerge_contract.text import count, interval, score, seconds
from evomerge_contract.verdict import difference, row_name, verdict_of
from evomerge_operator.local.directory import RunDirectory
from evomerge_operator.plan.run import Run, StageRun, commits

_BAR_WIDTH = 24
_LINE_EVERY_SECONDS = 10.0
_PICTURE_EVERY_SECONDS = 0.2
_SIZES = ("layers", "parameters", "cost")
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
        self._console.print(
            f"checking sources and data; {count(workers, 'worker')}; directory {directory.path}",
            style="dim",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def searching(self, run: Run) -> None:
        """Say what models at the hub are pinned to, and begin the live picture."""
        for asked, found in commits(run.prepared).items():
            self._console.print(f"{asked} is now {found}", highlight=False, markup=False, soft_wrap=True)
        self._began = time.monotonic()
        self._found_at_start = len(run.stage.progress.finished)
        if self._found_at_start:
            self._console.print(f"going on after {self._found_at_start} candidates found in the log", highlight=False)
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=False)
            self._live.start()
        else:
            self._console.print(headline(run), highlight=False)

    def moved(self, run: Run, running: int) -> None:
        """Show how far the search is."""
        now = time.monotonic()
        if self._live is not None:
            if not running or now - self._last_picture >= _PICTURE_EVERY_SECONDS:
                self._last_picture = now
                self._live.update(self._picture(run, running))
            return
        done = len(run.stage.progress.finished)
        ended = done == run.stage.candidates and done != self._seen
        if ended or (now - self._last_line >= _LINE_EVERY_SECONDS and done != self._seen):
            self._seen, self._last_line = done, now
            self._console.print(f"{self._counts(run, running)}  {_scores(run)}", highlight=False)

    def selecting(self, finalists: int, masks: int) -> None:
        """Say that the search is over; finalists are scored with so many masks."""
        self.close()
        each = f" with {masks} mask seeds each" if masks > 1 else ""
        self._console.print(f"scoring {finalists} finalists on select items{each}", style="dim", highlight=False)

    def writing(self, stage: StageRun) -> None:
        """Say that a stage's winner is written, for those that follow."""
        self._console.print(f"writing the winner of {stage.name}", style="dim", highlight=False)

    def concluding(self, baselines: int) -> None:
        """Say that test items are scored."""
        self.close()
        text = f"scoring the winner and {baselines} baselines on test items"
        self._console.print(text, style="dim", highlight=False)

    def done(self, run: Run, conclusion: ConcludeResult, directory: RunDirectory) -> None:
        """Show the table and where everything is."""
        self._console.print(result_table(conclusion))
        verdict = verdict_of(conclusion)
        for sentence in (verdict.headline, verdict.figures, *verdict.masks):
            self._console.print(sentence, highlight=False)
        for label, path in (("winner", directory.best), ("recipe", directory.recipe), ("report", directory.report)):
            # One path a line and never wrapped, so that it can be copied.
            self._console.print(f"{label}   {path}", highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Leave the terminal as it was found."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _picture(self, run: Run, running: int) -> RenderableType:
        searched = _searched(run)
        filled = round(_BAR_WIDTH * len(searched) / run.stage.candidates)
        bar = Text("█" * filled, style="green") + Text("░" * (_BAR_WIDTH - filled), style="dim")
        return Group(
            Text(headline(run)),
            bar + Text("  " + self._counts(run, running)),
            Text(f"{_scores(run)}   {_sparkline(searched)}"),
        )

    def _counts(self, run: Run, running: int) -> str:
        searched = _searched(run)
        failed = sum(c.outcome == "Failed" for c in searched)
        parts = [f"{len(searched)}/{run.stage.candidates}", f"{running} running"]
        if failed:
            parts.append(f"{failed} failed")
        timed = [c.seconds["total"] for c in searched if "total" in c.seconds]
        if timed:
            parts.append(f"{seconds(sum(timed) / len(timed))} each")
        new = len(searched) - self._found_at_start
        left = run.stage.candidates - len(searched)
        if new > self._workers and left:
            parts.append(f"{seconds((time.monotonic() - self._began) / new * left)} left")
        return "   ".join(parts)


def headline(run: Run) -> str:
    """Name, stage, method, dimensions and algorithm in one line."""
    stage = run.stage.stage
    return (
        f"{run.manifest.metadata.name} · stage {stage.name} · {stage.space.method} · "
        f"{len(run.stage.genes)} dimensions · {stage.search.algorithm}"
    )


def _searched(run: Run) -> list[Candidate]:
    return list(run.stage.progress.finished.values())


def _scores(run: Run) -> str:
    fitness = [c.fitness for c in _searched(run) if c.fitness is not None]
    parts = [f"best {score(max(fitness))}"] if fitness else []
    sources: list[tuple[float, str]] = []
    average = ""
    for index, baseline in enumerate(run.baselines):
        candidate = run.compared.finished.get(index)
        if candidate is None or candidate.fitness is None:
            continue
        if baseline.role == "source":
            sources.append((candidate.fitness, baseline.name))
        elif baseline.role == "average":
            average = f"plain average {score(candidate.fitness)}"
    if len(sources) == sum(b.role == "source" for b in run.baselines):
        best, name = max(sources)
        parts.append(f"best source {score(best)} ({name})")
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
    sized = any(row.layers for row in conclusion.test)
    for header in ["total", "95 % interval", *skills, "winner minus this", *(_SIZES if sized else ())]:
        table.add_column(header, justify="right")
    for row in conclusion.test:
        cells = [row_name(row, conclusion), score(row.score), interval(row.interval)]
        cells += [score(row.skills[s]) if s in row.skills else "" for s in skills]
        cells.append(difference(row))
        if sized:
            cells += [str(row.layers), f"{row.parameters:,}", f"{row.cost:.2f}" if row.cost else ""]
        table.add_row(*cells, style="bold" if row.role == "winner" else None)
    return table


def stdout_console() -> Console:
    """The console of standard output; wide enough for the table where the output is a file."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120)
