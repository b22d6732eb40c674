"""Statistics of all pairs of tensors, for as long as a session lives."""

from collections.abc import Mapping

from evomerge_worker.merge.method import Known
from evomerge_worker.merge.plan import Input
from evomerge_worker.shards import Checkpoint

_Pair = tuple[Checkpoint, str, Checkpoint, str]


class Statistics:
    """What is known of each pair of a source's tensor and the base's, for as long as both are open."""

    def __init__(self) -> None:
        self._pairs: dict[_Pair, Known] = {}

    def of(self, checkpoints: Mapping[str, Checkpoint], source: Input, base: Input) -> Known:
        """What is known of one pair; whoever finds out more writes it there."""
        pair = (checkpoints[source.model], source.tensor, checkpoints[base.model], base.tensor)
        return self._pairs.setdefault(pair, {})
