"""The merge methods by their published names."""

from evomerge_worker.merge.linear import linear
from evomerge_worker.merge.method import MergeMethod
from evomerge_worker.merge.slerp import slerp
from evomerge_worker.merge.task_arithmetic import dare_linear, dare_ties, task_arithmetic, ties

MERGE_METHODS: dict[str, MergeMethod] = {
    "linear": linear,
    "slerp": slerp,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
}
