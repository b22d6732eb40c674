"""DELLA without an election of signs: the thinned out task vectors added up (arXiv 2406.11617)."""

from evomerge_worker.merge.methods.della import magprune
from evomerge_worker.merge.task_vectors import family

merge = family(magprune, consensus=False)
