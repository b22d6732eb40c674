"""The quickstart's questions, and which of them no model may see in training.

    J34+57=  ->  九一        skill `sums`: add, and answer in Japanese numerals
    J507=    ->  五〇七      skill `reading`: write the number in Japanese numerals

`python examples/quickstart/items.py` writes data/search.jsonl, select.jsonl and test.jsonl: 500 items each, 350 sums
and 150 readings, drawn with a fixed seed. 34+57 and 57+34 count as one sum: where one is in a split, neither order is
in another split or in training, in any language.
"""

import json
import random
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SPLITS = ("search", "select", "test")
SUMS, READINGS = 350, 150  # per split
SEED = 0
JAPANESE = "〇一二三四五六七八九"


class Deal(NamedTuple):
    """The cards as dealt: the items of each split, and what is left to train on."""

    splits: dict[str, list[dict[str, str]]]
    pairs: list[tuple[int, int]]  # two-digit summands, both orders
    numbers: list[int]  # below 1000


def arabic(value: int) -> str:
    """91 -> "91"."""
    return str(value)


def japanese(value: int) -> str:
    """91 -> "九一"."""
    return "".join(JAPANESE[int(digit)] for digit in str(value))


def sum_item(a: int, b: int) -> dict[str, str]:
    """A sum, asked for in Japanese."""
    return {"prompt": f"J{a}+{b}=", "answer": japanese(a + b), "skill": "sums"}


def reading_item(number: int) -> dict[str, str]:
    """A number, to be written in Japanese."""
    return {"prompt": f"J{number}=", "answer": japanese(number), "skill": "reading"}


def deal(seed: int = SEED) -> Deal:
    """Every sum of two two-digit numbers and every number below 1000, dealt to the splits and to training."""
    rng = random.Random(seed)
    pairs = [(a, b) for a in range(10, 100) for b in range(a, 100)]
    numbers = list(range(1000))
    rng.shuffle(pairs)
    rng.shuffle(numbers)
    splits = {}
    for split in SPLITS:
        sums = [rng.choice([(a, b), (b, a)]) for a, b in pairs[:SUMS]]
        splits[split] = [sum_item(a, b) for a, b in sums] + [reading_item(n) for n in numbers[:READINGS]]
        rng.shuffle(splits[split])
        del pairs[:SUMS], numbers[:READINGS]
    return Deal(splits, sorted({*pairs, *((b, a) for a, b in pairs)}), sorted(numbers))


def main() -> None:
    """Write the three files."""
    folder = HERE / "data"
    folder.mkdir(exist_ok=True)
    for split, items in deal().splits.items():
        lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in items]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
