"""The word that a misspelt one was meant to be."""

import difflib
from collections.abc import Iterable

_NEAR = 0.8
"""How alike two words must be, by difflib's ratio, for one to be a misspelling of the other."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `word` is, or is nearly: small or capital, with other hyphens, two letters swapped."""
    words = {_plain(one): one for one in known}
    same_letters = (one for plain, one in words.items() if sorted(plain) == sorted(_plain(word)))
    close = difflib.get_close_matches(_plain(word), words, n=1, cutoff=_NEAR)
    return words.get(_plain(word)) or next(same_letters, None) or (words[close[0]] if close else None)


def _plain(word: str) -> str:
    return "".join(letter for letter in word.lower() if letter not in "-_ ")
