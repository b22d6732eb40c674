"""What the tests of a GPU share: `make test-gpu`.

With EVOMERGE_TEST_DEVICE=cpu a CPU takes the GPU's place, so that the tests can be tried where there is none.
"""

import os
from pathlib import Path

import pytest
import torch

_DEVICE = os.environ.get("EVOMERGE_TEST_DEVICE", "cuda")
if _DEVICE == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # pipelines and workers take a GPU where they see one


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a GPU every test here is skipped, with a word."""
    if _DEVICE == "cuda" and not torch.cuda.is_available():
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip("PyTorch finds no GPU here, so nothing of what one does was tested"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device that is tested."""
    return torch.device(_DEVICE)
