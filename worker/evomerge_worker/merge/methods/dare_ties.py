"""DARE with TIES' election of signs: task vectors thinned out at random (arXiv 2311.03099)."""

from evomerge_worker.merge.task_vectors import dropped, family

merge = family(dropped, consensus=True)
