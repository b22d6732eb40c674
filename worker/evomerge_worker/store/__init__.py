"""Where models and data come from: `file://`, `s3://` and `hf://`, each brought to a local path."""

from evomerge_worker.store.cache import default_cache
from evomerge_worker.store.store import Store, with_commits

__all__ = ["Store", "default_cache", "with_commits"]
