"""How long to wait before something is tried again that has just failed."""

from datetime import timedelta


def longer(before: float, first: float, most: float) -> float:
    """Twice as many seconds as before, at least the first pause and at most `most`; `before` is 0 at first."""
    return min(most, max(first, 2 * before))


def after(failures: int, patience: int, most: float) -> timedelta:
    """The pause after so many failures in a row: none for the first ones, then 2 s, twice as long after each."""
    return timedelta(seconds=0 if failures <= patience else min(most, 2.0 ** (failures - patience)))
