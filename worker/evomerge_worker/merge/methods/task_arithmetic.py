"""Task arithmetic: the weighted sum of task vectors on top of the base (arXiv 2212.04089)."""

from evomerge_worker.merge.task_vectors import family, whole

merge = family(whole, consensus=False)
