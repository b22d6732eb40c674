"""The picture that a person sees in a terminal while a run goes, as plain text."""

import io
from collections.abc import Mapping
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.text import Text

from begun import begun
from documents import document
from evomerge_contract.candidate import Candidate
from evomerge_contract.manifest import EvoMerge
from evomerge_operator.local import terminal as module
from evomerge_operator.local.terminal import Terminal
from evomerge_operator.plan.run import BASELINES, Key

_ERASE_LINE = "\x1b[2K"
"""Comes before a picture that is drawn over the one before."""
_SHOW_CURSOR = "\x1b[?25h"


class Screen:
    """A run that is shown in a terminal of 100 columns, by a clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.seconds))
        self._run, _ = begun(EvoMerge.model_validate(document()))
        self._written = io.StringIO()
        self._terminal = Terminal(Console(file=self._written, width=100, force_terminal=True))

    def begin(self, finished: Mapping[Key, Candidate]) -> list[str]:
        """What is said before the picture."""
        self._finish(finished)
        self._terminal.searching(self._run)
        self._before = len(self._written.getvalue())
        return Text.from_ansi(self._written.getvalue()).plain.splitlines()

    def show(self, finished: Mapping[Key, Candidate], running: int) -> None:
        self._finish(finished)
        self._terminal.moved(self._run, running)

    def _finish(self, finished: Mapping[Key, Candidate]) -> None:
        for key, candidate in finished.items():
            self._run.progress(key.stage).finish(candidate)

    def left(self) -> list[str]:
        """The picture that is left when the terminal is given back."""
        self._terminal.close()
        written = self._written.getvalue()[self._before :]
        assert written.rstrip().endswith(_SHOW_CURSOR)
        return Text.from_ansi(written.rpartition(_ERASE_LINE)[2].replace(_SHOW_CURSOR, "")).plain.splitlines()


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    return Screen(monkeypatch)


def scored(*fitness: float | None) -> dict[Key, Candidate]:
    """Candidates of these fitnesses, half a second each; None: failed."""
    return {Key("ps", index): _candidate("ps", index, value) for index, value in enumerate(fitness)}


def baselines(*fitness: float | None) -> dict[Key, Candidate]:
    """The sources a and b and their plain average."""
    return {Key(BASELINES, index): _candidate(BASELINES, index, value) for index, value in enumerate(fitness)}


def test_before_the_first_candidate_the_bar_is_empty(screen: Screen) -> None:
    screen.begin({})
    screen.seconds = 1
    screen.show({}, 1)
    assert screen.left() == [
        "tiny · stage ps · linear · 2 dimensions · GA",
        "░░░░░░░░░░░░░░░░░░░░░░░░  0/8   1 running",
        "   ",
    ]


def test_in_the_middle_it_shows_how_far_how_fast_how_good_and_how_it_grew(screen: Screen) -> None:
    screen.begin({})
    screen.seconds = 40
    screen.show(scored(0.1, 0.3, None, 0.2) | baselines(0.25, 0.15, 0.35), 2)
    assert screen.left() == [
        "tiny · stage ps · linear · 2 dimensions · GA",
        "████████████░░░░░░░░░░░░  4/8   2 running   1 failed   0.50 s each   40.0 s left",
        "best 0.300   best source 0.250 (a)   plain average 0.350   ▁▁▁███████",
    ]


def test_the_best_source_is_named_once_all_sources_are_scored(screen: Screen) -> None:
    screen.begin({})
    screen.seconds = 1
    screen.show(scored(0.1) | baselines(0.25), 2)
    assert screen.left()[2].rstrip() == "best 0.100"


def test_candidates_that_were_found_in_the_log_are_said_and_not_timed(screen: Screen) -> None:
    found = scored(0.1, 0.2, 0.3)
    assert screen.begin(found)[0] == "going on after 3 candidates found in the log"
    screen.seconds = 100
    screen.show(scored(0.1, 0.2, 0.3, 0.4), 1)
    assert screen.left()[1] == "████████████░░░░░░░░░░░░  4/8   1 running   0.50 s each"


def test_at_the_end_the_bar_is_full(screen: Screen) -> None:
    screen.begin({})
    screen.seconds = 1
    screen.show(scored(*(n / 8 for n in range(8))), 0)
    assert screen.left()[1:] == [
        "████████████████████████  8/8   0 running   0.50 s each",
        "best 0.875   ▁▁▂▃▄▄▅▆▇█",
    ]


@pytest.mark.parametrize(("running", "shown"), [(2, "1/8   3 running"), (0, "2/8   0 running")])
def test_a_picture_stays_for_a_fifth_of_a_second_unless_nothing_runs_any_more(
    screen: Screen, running: int, shown: str
) -> None:
    screen.begin({})
    screen.seconds = 10
    screen.show(scored(0.1), 3)
    screen.seconds = 10.1
    screen.show(scored(0.1, 0.2), running)
    assert shown in screen.left()[1]


def _candidate(stage: str, index: int, fitness: float | None) -> Candidate:
    return Candidate(
        stage=stage,
        index=index,
        recipe_digest="sha256:" + "0" * 64,
        algorithm="GA/1",
        outcome="Succeeded" if fitness is not None else "Failed",
        fitness=fitness,
        reason=None if fitness is not None else "NotFinite",
        seconds={"total": 0.5},
    )
