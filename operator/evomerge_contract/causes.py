"""Problems that one cause has at many places, told once."""

import re
from collections.abc import Iterable

from evomerge_contract.report import Problem

_URI = re.compile(r"(?:s3|hf|file)://\S+(?<!:)")
_SHOWN = 2


def by_cause(problems: Iterable[Problem]) -> list[str]:
    """What is wrong, a sentence for each cause: with its places, and of what lies there the first, if that is not said.

    Causes are told apart by the message, without the URI that it begins with.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for problem in dict.fromkeys(problems):
        uri = _URI.match(problem.message)
        start = uri.end() if uri else 0
        found.setdefault(problem.message[start:], []).append((problem.path, problem.message[:start]))
    return [
        f"{_paths([path for path, _ in places])}: {(_uris(places) + cause).strip()}" for cause, places in found.items()
    ]


def _paths(paths: list[str]) -> str:
    shown = ", ".join(paths[:_SHOWN])
    return f"{shown} and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else shown


def _uris(places: list[tuple[str, str]]) -> str:
    uris = list(dict.fromkeys(uri for path, uri in places if uri and uri != path))
    return "".join(uris[:1]) + (f" (and {len(uris) - 1} more)" if len(uris) > 1 else "")
