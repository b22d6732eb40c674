"""What a person reads at the end: the page of a run (`render`) and the model card of its winner (`card`)."""

from evomerge_worker.report.render import render

__all__ = ["render"]
