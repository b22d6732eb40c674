"""What a worker has done so far, as its supervisor counts it."""

from collections import Counter
from collections.abc import Mapping

from evomerge_contract.report import Report
from evomerge_worker.process.progress import Totals

PORT_VARIABLE = "EVOMERGE_WORKER_PORT"
"""The environment variable that names the port of the metrics; without it nothing is served."""


class Tally:
    """Tasks, outcomes and the sessions' progress. The supervisor counts; any other thread may read."""

    def __init__(self, tasks: int = 0) -> None:
        """`tasks` that are known to come."""
        self.tasks = tasks
        self.outcomes: Counter[str] = Counter()
        self._begun = 0
        self._sessions: dict[int, Totals] = {}

    def begin(self) -> None:
        """A task is begun."""
        self._begun += 1
        self.tasks = max(self.tasks, self._begun)

    def end(self, report: Report) -> None:
        """A task is reported."""
        self.outcomes[report.outcome] += 1

    def update(self, session: int, totals: Totals) -> None:
        """What the session of this process id has done since it began."""
        self._sessions[session] = totals

    @property
    def items(self) -> float:
        """Items scored by all sessions."""
        return sum(totals.items for totals in list(self._sessions.values()))

    @property
    def seconds(self) -> Mapping[str, float]:
        """Seconds of all sessions by phase."""
        total: dict[str, float] = {}
        for totals in list(self._sessions.values()):
            for phase, seconds in totals.seconds.items():
                total[phase] = total.get(phase, 0.0) + seconds
        return total
