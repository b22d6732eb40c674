"""All randomness of a search comes from (seed, stage, index): the same anywhere, at any time, after any kill."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256


def seed_of(seed: int, stage: str, index: int, purpose: str) -> int:
    """A seed of 256 bits for one purpose at one index of a stage."""
    return int.from_bytes(sha256(f"{seed}/{stage}/{index}/{purpose}".encode()).digest(), "big")


@contextmanager
def seeded_global_random(seed: int) -> Iterator[None]:
    """Seed Python's global `random`, which DEAP draws from, and put back its state afterwards."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
