"""Carrying out recipes: from a recipe and its sources to merged tensors."""

from evomerge_worker.merge.export import export_checkpoint
from evomerge_worker.merge.plan import TensorPlan, anchor_of, plan_merge
from evomerge_worker.merge.run import Merger

__all__ = ["Merger", "TensorPlan", "anchor_of", "export_checkpoint", "plan_merge"]
