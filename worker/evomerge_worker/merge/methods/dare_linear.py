"""DARE, linear: task vectors thinned out at random, then added up (arXiv 2311.03099)."""

from evomerge_worker.merge.dare import dropped
from evomerge_worker.merge.task_vectors import family

merge = family(dropped, consensus=False)
