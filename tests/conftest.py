"""What all tests share. `tiny_models` can be imported by any test; `tiny` builds each checkpoint once a session."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve one another on few cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tiny_models import Tiny

settings.register_profile("evomerge", deadline=None, derandomize=True)
settings.load_profile("evomerge")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> "Tiny":
    """`tiny_checkpoint` without its folder: the same arguments give the same folder. Tests must not write into it."""
    from tiny_models import tiny_checkpoint  # needs torch, which the operator's tests do without

    root = tmp_path_factory.mktemp("tiny")
    made: dict[str, Path] = {}

    def checkpoint(family: str = "llama", **options: object) -> Path:
        key = repr((family, sorted(options.items())))
        if key not in made:
            made[key] = tiny_checkpoint(root / f"{len(made)}-{family}", family, **options)  # type: ignore[arg-type]
        return made[key]

    return checkpoint
