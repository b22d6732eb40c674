"""DARE, linear: task vectors thinned out at random, then added up (arXiv 2311.03099)."""

from evomerge_worker.merge.task_vectors import dropped, family

merge = family(dropped, consensus=False)
