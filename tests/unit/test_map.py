"""The map of CONTRIBUTING.md names every room of the packages, and no room that does not exist."""

import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("operator/evomerge_contract", "operator/evomerge_operator", "worker/evomerge_worker")
STEP = 2
DEEPEST = 10
"""A line that is indented further goes on with the description of the one above."""


def test_every_name_of_the_map_exists() -> None:
    missing = [name for name in rooms_of_the_map() if not (REPOSITORY / name).exists()]
    assert missing == [], "CONTRIBUTING.md: the map names what does not exist"


def test_the_map_names_every_folder_and_every_top_level_module_of_the_packages() -> None:
    named = set(rooms_of_the_map())
    missing = [room for package in PACKAGES for room in rooms_of_the_tree(package) if room not in named]
    assert missing == [], "CONTRIBUTING.md: name these in the map, with a few words on what they are for"


def rooms_of_the_map() -> Iterator[str]:
    """The paths that the map names: a line's names, then two spaces or more, then what they are for."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    section = text.split("## The map of the house\n", 1)[1]
    above: dict[int, str] = {}
    for line in re.findall(r"^    +\S.*$", section, re.MULTILINE):
        indent = len(line) - len(line.lstrip())
        if indent > DEEPEST:
            continue
        folder = above.get(indent - STEP, "")
        names = re.split(r"\s{2,}", line.strip(), maxsplit=1)[0].split()
        for name in names:
            yield f"{folder}{name.rstrip('/')}"
        above[indent] = f"{folder}{names[0]}"


def rooms_of_the_tree(package: str) -> Iterator[str]:
    """The package, its folders of Python files at any depth, and the modules beside them."""
    for file in sorted((REPOSITORY / package).rglob("*.py")):
        path = file.relative_to(REPOSITORY)
        if file.name == "__init__.py":
            yield path.parent.as_posix()
        elif path.parent.as_posix() == package:
            yield path.as_posix()
