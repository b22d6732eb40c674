"""The search of a stage on this machine: candidates started, settled and logged until all are finished."""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from evomerge_contract.candidate import Candidate
from evomerge_contract.report import Report
from evomerge_contract.task import Task
from evomerge_operator.errors import RunError
from evomerge_operator.local.carry_out import Executor, error_of
from evomerge_operator.local.log import RunLog
from evomerge_operator.plan.next import all_sources_failed, failures_in_words, next_keys, too_many_failures
from evomerge_operator.plan.proposer import Proposer, Start
from evomerge_operator.plan.run import BASELINES, Key, Run
from evomerge_operator.plan.settle import settle


class SearchWatcher(Protocol):
    """Who is told how a search goes."""

    def searching(self, run: Run) -> None:
        """The search of the run's stage begins, or goes on from what is finished."""

    def moved(self, run: Run, running: int) -> None:
        """Candidates have started or finished."""


def search(
    executor: Executor,
    run: Run,
    proposer: Proposer,
    log: RunLog,
    found: deque[Candidate],
    watcher: SearchWatcher,
) -> None:
    """Run the baselines and the candidates of the run's stage until all are finished and logged.

    `found` is what the log held that was not taken over yet.

    Raises:
        RunError: too many candidates failed, or the input is wrong.
        TryAgainError: storage did not answer.
    """
    unlogged = _take_over(run, proposer, log, found)
    finished: dict[Key, Candidate] = {}  # with their genomes, until they are logged
    running: dict[Key, Start] = {}
    watcher.searching(run)
    while True:
        for start in _starts(run, proposer, next_keys(run, running.keys(), executor.idle)):
            executor.start(start.task)
            running[start.key] = start
        lost = all_sources_failed(run)
        if lost:
            raise RunError(lost)
        watcher.moved(run, len(running))
        if not running:
            break
        for task, report in executor.wait():
            _settle(run, running, finished, task, report)
        while unlogged and unlogged[0] in finished:
            log.append(finished.pop(unlogged.popleft()))
    if too_many_failures(run):
        raise RunError(failures_in_words(run))


def _take_over(run: Run, proposer: Proposer, log: RunLog, found: deque[Candidate]) -> deque[Key]:
    """Take over what the log has of the stage and of the baselines; returns the keys that it lacks, in its order.

    Raises:
        RunError: the log has a hole, or was written by another version of the search.
    """
    keys = deque(Key(BASELINES, index) for index in range(run.compared.leading, len(run.baselines)))
    keys.extend(Key(run.stage.name, index) for index in range(run.stage.candidates))
    while found and keys:
        candidate, key = found.popleft(), keys.popleft()
        there = Key(candidate.stage, candidate.index)
        problem = proposer.replay(candidate)
        if there != key:
            problem = f"holds {there.stage} {there.index} where {key.stage} {key.index} should be"
        if problem:
            raise RunError(f"{log.path} {problem}; restore it, or choose another directory with --out")
        run.progress(key.stage).finish(candidate, told=True)
    return keys


def _starts(run: Run, proposer: Proposer, keys: Sequence[Key]) -> list[Start]:
    """These candidates as tasks; the run knows their genomes from then on."""
    progress = run.stage.progress
    proposer.tell(progress.untold)
    progress.untold.clear()
    starts = proposer.starts(keys, progress.genomes)
    for start in starts:
        if start.genome is not None:
            progress.ask(start.key.index, start.genome)
    return starts


def _settle(run: Run, running: dict[Key, Start], finished: dict[Key, Candidate], task: Task, report: Report) -> None:
    trace = task.trace or {}
    key = Key(trace["stage"], trace["index"])
    start, progress = running.pop(key), run.progress(key.stage)
    if report.reason in ("InvalidInput", "TryAgain"):
        raise error_of(report, f"{key.stage} {key.index}", run.manifest)
    candidate = settle(run, start, report)
    if candidate is None:
        progress.failures[key.index] = progress.failures.get(key.index, 0) + 1
    else:
        progress.finish(candidate)
        finished[key] = candidate
