"""The word that a misspelt one was meant to be."""

import difflib
from collections.abc import Iterable

_NEAR = 0.8
"""How alike two words must be, by difflib's ratio, for one to be a misspelling of the other."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `word` is, or is nearly: small or capital, with other hyphens, two letters swapped."""
    words = {one.lower().replace("-", "_"): one for one in known}
    meant = word.lower().replace("-", "_")
    same = (one for plain, one in words.items() if _joined(plain) == _joined(meant))
    same_letters = (one for plain, one in words.items() if sorted(plain) == sorted(meant))
    close = difflib.get_close_matches(meant, words, n=1, cutoff=_NEAR)
    return next(same, None) or next(same_letters, None) or (words[close[0]] if close else None)


def _joined(word: str) -> str:
    return word.replace("_", "").replace(" ", "")
