"""Collecting mistakes, so that a person hears of all of them at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from evomerge_contract.problems import in_words
from evomerge_contract.report import Problem
from evomerge_worker.errors import InputError, StorageError
from evomerge_worker.merge.fit import Misfit


class Mistakes:
    """What was found so far: mistakes that must be mended, and disturbances that may pass.

    `broken` are sources whose tensors are not those of their own configurations: others that do not fit them are not to
    blame. `strange` are those whose configurations say that their tensors are like no others: these need no words.
    """

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self.broken: set[str] = set()
        self.strange: set[str] = set()
        self._passing: list[StorageError] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        """What the block raises for wrong input or a failing server is kept, and the work goes on after the block."""
        try:
            yield
        except InputError as error:
            self.found += error.problems
        except StorageError as error:
            self._passing.append(error)

    def told(self) -> list[Problem]:
        """What was found, each once, without what follows from something else that was."""
        return [problem for problem in dict.fromkeys(self.found) if not self._follows(problem)]

    def _follows(self, problem: Problem) -> bool:
        if not isinstance(problem, Misfit):
            return False
        return problem.other in self.broken or bool(self.strange & {problem.source, problem.other})

    def raise_any(self, order: Sequence[str]) -> None:
        """Raise what was found, each once, sorted by path as `order` has them, the rest after it.

        Mistakes go before disturbances: trying again does not help against them.
        """
        if self.found:
            place = {path: i for i, path in enumerate(order)}
            raise InputError(*sorted(self.told(), key=lambda problem: place.get(problem.path, len(place))))
        if self._passing:
            problems = [problem for error in self._passing for problem in error.problems]
            raise StorageError(in_words(problems), *problems)
