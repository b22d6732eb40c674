"""What can go wrong on the deciding side; the command line prints the message and exits with `exit_code`.

EvoMergeError
├── InputError      the manifest, models or data are wrong: mend them (65)
├── RunError        the run cannot go on or has failed (1)
└── TryAgainError   storage did not answer: the same command may work later (75)
"""

from evomerge_contract.exits import EXIT_FAILURE, EXIT_INVALID_INPUT, EXIT_TRY_AGAIN
from evomerge_contract.report import Problem
from evomerge_contract.text import count


class EvoMergeError(Exception):
    """The root of the tree."""

    exit_code = EXIT_FAILURE


class InputError(EvoMergeError):
    """Mistakes in what the person gave, all that were found; `source` is the file they are in."""

    exit_code = EXIT_INVALID_INPUT

    def __init__(self, source: str, problems: list[Problem]) -> None:
        super().__init__(f"{source}: {count(len(problems), 'mistake')}")
        self.source = source
        self.problems = problems

    @classmethod
    def at(cls, source: str, path: str, message: str) -> "InputError":
        """One mistake."""
        return cls(source, [Problem(path=path, message=message)])


class RunError(EvoMergeError):
    """The run cannot go on; the message says why and what to do."""


class TryAgainError(EvoMergeError):
    """Something outside did not answer."""

    exit_code = EXIT_TRY_AGAIN
