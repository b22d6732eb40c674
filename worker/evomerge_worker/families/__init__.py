"""Models as transformers runs them."""

from evomerge_worker.families.live import LiveModel

__all__ = ["LiveModel"]
