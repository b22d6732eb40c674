"""Model Breadcrumbs (arXiv 2312.06795) with TIES' election of signs."""

from evomerge_worker.merge.methods.breadcrumbs import without_outliers
from evomerge_worker.merge.task_vectors import family

merge = family(without_outliers, consensus=True)
