"""A set of dotted names as one pattern: `layers.{0..31}.{mlp.{down_proj,up_proj}.weight,norm.{bias,weight}}`.

`{a,b}` is a or b, and `{2..5}` is 2, 3, 4 or 5; they nest. The 1,680 names of a large U-Net make 4,000 characters.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, product

_MOST = 1 << 19
"""All names of a pattern together have no more characters, counting one more for each piece they are joined from."""
_DEEPEST = 50
"""Names of more parts have no pattern, and no pattern nests deeper."""
_RESERVED = re.compile(r"[{},]|\.\.")
_TOKEN = re.compile(r"[{},]|[^{},]+")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
_RANGE = re.compile(rf"({_NUMBER.pattern})\.\.({_NUMBER.pattern})")
_END = ""  # in a tree of parts: a name may end here

_Tree = dict[str, "_Tree"]
_Sequence = list["str | _Choice"]
_Choice = list["_Sequence | range"]


class PatternError(ValueError):
    """A text is no pattern, or stands for more names than any model has."""


def compress(names: Iterable[str]) -> str | None:
    """The pattern of a set of names; None where there is none: for no names, or names with braces, commas, empty or
    very many parts."""
    tree: _Tree = {}
    for name in names:
        parts = name.split(".")
        if _END in parts or _RESERVED.search(name) or len(parts) > _DEEPEST:
            return None
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
        node[_END] = {}
    return _one_of(_branches(tree)) if tree else None


def expand(pattern: str) -> list[str]:
    """The names that a pattern stands for, sorted, each once.

    Raises:
        PatternError: it is no pattern, or one of too many names.
    """
    tokens: list[str] = _TOKEN.findall(pattern)
    sequence, end = _read_sequence(tokens, 0, 0)
    if end < len(tokens):
        raise PatternError(f'"{pattern[:60]}" is no pattern of names: a brace or comma stands alone')
    _size(sequence)
    return sorted(set(_names(sequence)))


def _branches(tree: _Tree) -> list[str]:
    """A pattern for all parts that go on alike."""
    alike: dict[str, list[str]] = {}
    for part, rest in tree.items():
        if part != _END:
            alike.setdefault(_after(rest), []).append(part)
    return [_one_of(_with_ranges(parts)) + rest for rest, parts in alike.items()]


def _after(tree: _Tree) -> str:
    """What follows a part, from its dot on."""
    branches = _branches(tree)
    if not branches:
        return ""
    return _one_of(["", *(f".{b}" for b in branches)]) if _END in tree else f".{_one_of(branches)}"


def _one_of(alternatives: Sequence[str]) -> str:
    if len(alternatives) == 1 and not _RANGE.fullmatch(alternatives[0]):
        return alternatives[0]
    return "{" + ",".join(alternatives) + "}"


def _with_ranges(parts: Sequence[str]) -> list[str]:
    """The parts, three or more consecutive numbers among them as a range."""
    numbers = sorted(int(part) for part in parts if _NUMBER.fullmatch(part))
    written = [part for part in parts if not _NUMBER.fullmatch(part)]
    for _, group in groupby(enumerate(numbers), key=lambda entry: entry[1] - entry[0]):
        run = [number for _, number in group]
        written += [f"{run[0]}..{run[-1]}"] if len(run) > 2 else map(str, run)
    return written


def _read_sequence(tokens: Sequence[str], at: int, depth: int) -> tuple[_Sequence, int]:
    """What is joined, from token `at` to the next comma or brace that closes; and where that is."""
    parts: _Sequence = []
    while at < len(tokens) and tokens[at] not in (",", "}"):
        if tokens[at] != "{":
            parts.append(tokens[at])
            at += 1
            continue
        choice, at = _read_choice(tokens, at + 1, depth + 1)
        parts.append(choice)
    return parts, at


def _read_choice(tokens: Sequence[str], at: int, depth: int) -> tuple[_Choice, int]:
    """The alternatives after a brace that opens at `at - 1`; and where what follows them begins."""
    if depth > _DEEPEST + 1:
        raise PatternError(f"a pattern of names has more than {_DEEPEST} braces in one another")
    choice: _Choice = []
    while True:
        sequence, at = _read_sequence(tokens, at, depth)
        only = sequence[0] if len(sequence) == 1 else None
        span = _RANGE.fullmatch(only) if isinstance(only, str) else None
        choice.append(range(int(span[1]), int(span[2]) + 1) if span else sequence)
        if at == len(tokens):
            raise PatternError("a pattern of names has a brace that is never closed")
        at += 1
        if tokens[at - 1] == "}":
            return choice, at


def _size(sequence: _Sequence | range) -> tuple[int, int]:
    """How many names there are, and how many characters and pieces in all of them; told before any is made."""
    if isinstance(sequence, range):
        return len(sequence), len(sequence) * len(str(sequence.stop))
    count, characters = 1, 0
    for part in sequence:
        its = [(1, len(part))] if isinstance(part, str) else [_size(alternative) for alternative in part]
        its_count, its_characters = sum(c for c, _ in its), sum(c for _, c in its)
        count, characters = count * its_count, characters * its_count + (its_characters + its_count) * count
        if characters > _MOST:
            raise PatternError("a pattern stands for more names than any model has tensors")
    return count, characters


def _names(sequence: _Sequence | range) -> Iterator[str]:
    if isinstance(sequence, range):
        return map(str, sequence)
    choices = ([part] if isinstance(part, str) else [n for one in part for n in _names(one)] for part in sequence)
    return map("".join, product(*choices))
