"""What can go wrong in a worker; every leaf says whether trying again can help.

WorkerError
├── InputError       the input is wrong; never retried (exit code 65)
├── StorageError     something outside the manifest keeps us from reading or writing; try again later (exit code 75)
└── CandidateError   this candidate failed; others may not
"""

from collections.abc import Sequence
from typing import Self

from evomerge_contract.candidate import FailureReason
from evomerge_contract.exits import EXIT_FAILURE, EXIT_INVALID_INPUT, EXIT_TRY_AGAIN
from evomerge_contract.manifest import BASE
from evomerge_contract.problems import in_words
from evomerge_contract.report import Problem


class WorkerError(Exception):
    """The root; `reason` is what the report says, `problems` where it went wrong, if that can be said."""

    reason: FailureReason = "Error"
    exit_code = EXIT_FAILURE
    problems: Sequence[Problem] = ()


class InputError(WorkerError):
    """Mistakes in models, data or recipe, all that were found."""

    reason: FailureReason = "InvalidInput"
    exit_code = EXIT_INVALID_INPUT

    def __init__(self, *problems: Problem) -> None:
        super().__init__(in_words(problems))
        self.problems = list(problems)

    @classmethod
    def at(cls, path: str, message: str) -> Self:
        """One mistake: where, and what to do."""
        return cls(Problem(path=path, message=message))


class StorageError(WorkerError):
    """A source could not be read, or a result written: trying again can help.

    The server or disk failed, the credentials are refused or missing, a bucket or object is missing, or content is not
    what it was: all that is cured without touching the manifest.
    """

    reason: FailureReason = "TryAgain"
    exit_code = EXIT_TRY_AGAIN

    def __init__(self, message: str, *problems: Problem) -> None:
        super().__init__(message)
        self.problems = list(problems)

    @classmethod
    def at(cls, path: str, message: str) -> Self:
        """One disturbance: where, and what to do."""
        problem = Problem(path=path, message=message)
        return cls(in_words([problem]), problem)


class CandidateError(WorkerError):
    """This merge cannot be scored: a score that is not finite, memory that does not suffice."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def where_of(source: str) -> str:
    """The path at which problems with the source of that name are reported."""
    return BASE if source == BASE else f"models.{source}"


def out_of_memory(error: Exception) -> bool:
    """Whether `error` says that memory did not suffice: torch has a class for GPUs, and only words for CPUs."""
    return isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "can't allocate" in str(error)
