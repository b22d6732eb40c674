"""Problems in words: in one line for a condition, in rows for a terminal."""

from collections.abc import Sequence

from evomerge_contract.causes import by_cause
from evomerge_contract.report import Problem
from evomerge_contract.text import count

MESSAGE_CHARACTERS = 3900
"""The longest text of problems: a condition's message may have 4,000 characters."""


def in_words(problems: Sequence[Problem], left_out: int = 0) -> str:
    """Problems in one line by their causes, as many as there is room for, and how many more there are.

    `left_out` is how many there are besides these.
    """
    sentences = by_cause(problems)
    text, shown = "", 0
    for sentence in sentences:
        longer = f"{text}; {sentence}" if text else sentence
        if text and len(longer) > MESSAGE_CHARACTERS:
            break
        text, shown = longer, shown + 1
    text, more = text[:MESSAGE_CHARACTERS], len(sentences) - shown + left_out
    return f"{text}; and {more} more" if more else text


def in_rows(source: str, problems: Sequence[Problem]) -> str:
    """What is wrong with the file `source`: how many mistakes there are, then one a line."""
    width = min(60, max((len(problem.path) for problem in problems), default=0))
    rows = [f"  {problem.path:<{width}}   {problem.message}\n" for problem in problems]
    return f"{source}: {count(len(problems), 'mistake')}\n{''.join(rows)}"
