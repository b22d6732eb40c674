"""Checkpoints on disk: safetensors in and out, and what their tensor names tell."""

from evomerge_worker.shards.checkpoint import Checkpoint
from evomerge_worker.shards.layout import layout_of
from evomerge_worker.shards.writer import Entry, write_checkpoint

__all__ = ["Checkpoint", "Entry", "layout_of", "write_checkpoint"]
