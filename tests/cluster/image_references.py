"""Which images the cluster has."""

import json
import time
from pathlib import Path

import pytest


class Images:
    """References of the images that were built from this repository and handed to the cluster."""

    def __init__(self, record: Path, marks: Path) -> None:
        self._record, self._marks = record, marks

    @property
    def operator(self) -> str:
        """The operator."""
        return self._reference("operator")

    @property
    def light_worker(self) -> str:
        """The worker without torch."""
        return self._reference("light-worker")

    @property
    def worker(self) -> str:
        """The real worker. Big: it is built beside the first tests, and this waits for it."""
        mark = self._marks / "building-worker"
        while mark.exists():
            time.sleep(1)
        return self._reference("worker")

    @property
    def wanted_worker(self) -> str:
        """The real worker, or what it will be called where it is not there yet."""
        from lab.images import reference

        mark = self._marks / "building-worker"
        return reference("worker") if mark.exists() or "worker" not in self._loaded() else self._reference("worker")

    def _loaded(self) -> dict[str, str]:
        return dict(json.loads(self._record.read_text())) if self._record.exists() else {}

    def _reference(self, name: str) -> str:
        loaded = self._loaded()
        if name not in loaded:
            log = self._marks / f"log/image-{name}.log"
            said = log.read_text()[-3000:] if log.exists() else f"build it: python tests/cluster/lab images {name}"
            pytest.fail(f"the cluster has no {name} image; {said}", pytrace=False)
        return str(loaded[name])
