"""Collecting mistakes, so that a person hears of all of them at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from evomerge_contract.report import Problem
from evomerge_worker.errors import InputError, StorageError


class Mistakes:
    """What was found so far: mistakes that must be mended, and disturbances that may pass."""

    def __init__(self) -> None:
        self.found: list[Problem] = []
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

    def raise_any(self, order: Sequence[str]) -> None:
        """Raise what was found, each once, sorted by path as `order` has them, the rest after it.

        Mistakes go before disturbances: trying again does not help against them.
        """
        if self.found:
            place = {path: i for i, path in enumerate(order)}
            once = dict.fromkeys(self.found)
            raise InputError(*sorted(once, key=lambda problem: place.get(problem.path, len(place))))
        if self._passing:
            problems = [problem for error in self._passing for problem in error.problems]
            raise StorageError("; ".join(str(error) for error in self._passing), *problems)
