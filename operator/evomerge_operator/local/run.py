"""`evomerge run`: the planner, driven on one machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from evomerge_contract.base import canonical_json
from evomerge_contract.candidate import Candidate, Genome
from evomerge_contract.causes import by_cause
from evomerge_contract.manifest import BASE, EvoMerge, EvoMergeSpec
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import ConcludeResult, PrepareResult, Problem, Report, RunReport
from evomerge_contract.task import Task
from evomerge_operator import plan
from evomerge_operator.errors import EvoMergeError, InputError, RunError, TryAgainError
from evomerge_operator.local.commits import known_commits, remembered
from evomerge_operator.local.directory import RunDirectory
from evomerge_operator.local.executor import LocalExecutor
from evomerge_operator.local.log import RunLog
from evomerge_operator.local.worker_command import render_report
from evomerge_operator.plan import Key, Start, State
from evomerge_operator.prepared import Run, identity, make_run, pinned, prepare_task
from evomerge_operator.recipes import recipe_text


class Executor(Protocol):
    """Who carries tasks out: worker processes here, Jobs elsewhere."""

    @property
    def idle(self) -> int:
        """How many tasks could be started now."""

    def start(self, task: Task) -> None:
        """Begin a task."""

    def wait(self) -> list[tuple[Task, Report]]:
        """Block until tasks have ended."""

    def last_words(self) -> str:
        """What a worker last said of its own trouble."""


class Watcher(Protocol):
    """Who is told how a run goes."""

    def preparing(self, manifest: EvoMerge, directory: RunDirectory, workers: int) -> None:
        """The sources are being pulled and checked."""

    def searching(self, run: Run, finished: dict[Key, Candidate]) -> None:
        """The search begins, or goes on from what is `finished`."""

    def moved(self, run: Run, finished: dict[Key, Candidate], running: int) -> None:
        """Candidates have started or finished."""

    def concluding(self, finalists: int, baselines: int, masks: int) -> None:
        """The search is done; finalists and test items are being scored."""

    def done(self, run: Run, conclusion: ConcludeResult, directory: RunDirectory) -> None:
        """All is written."""


@dataclass
class _Progress:
    """What has happened so far, in the log and since; see `State`."""

    stage: str
    finished: dict[Key, Candidate] = field(default_factory=dict)
    genomes: list[Genome] = field(default_factory=list)
    fitness: list[float | None] = field(default_factory=list)
    attempts: dict[Key, int] = field(default_factory=dict)
    running: dict[Key, Start] = field(default_factory=dict)

    def replay(self, candidates: list[Candidate]) -> None:
        """Take over what a log says; its genomes are taken as they are, never computed again."""
        for candidate in candidates:
            if candidate.genome is not None:
                self.genomes.append(candidate.genome)
            self.finish(candidate)

    def start(self, start: Start) -> None:
        self.running[start.key] = start
        if start.genome is not None and start.key.index == len(self.genomes):
            self.genomes.append(start.genome)

    def finish(self, candidate: Candidate) -> None:
        self.finished[Key(candidate.stage, candidate.index)] = candidate
        while (following := self.finished.get(Key(self.stage, len(self.fitness)))) is not None:
            self.fitness.append(following.fitness)

    def state(self) -> State:
        return State(self.finished, self.genomes, self.fitness, self.attempts, self.running.keys())


def run_manifest(manifest: EvoMerge, source: str, out: Path, workers: int, watcher: Watcher) -> ConcludeResult:
    """Run (or go on with) the search of a manifest in the directory `out`; returns how it ended.

    Raises:
        EvoMergeError: with one sentence for the person.
    """
    directory = RunDirectory(out)
    try:
        directory.claim()
        watcher.preparing(manifest, directory, workers)
        with LocalExecutor(workers, directory.worker_log, worker_environments(workers)) as executor:
            earlier = known_commits(directory)
            prepared = prepare(executor, pinned(manifest, earlier), source, directory.reports)
            prepared = remembered(prepared, manifest, earlier)
            run = make_run(manifest, prepared, directory.reports.resolve().as_uri())
            with _log(directory, identity(manifest, prepared)) as log:
                finished = search(executor, run, log, directory, watcher)
            return _finish(executor, run, finished, directory, watcher)
    except InputError:
        directory.discard()
        raise
    except OSError as error:
        place = error.filename or directory.path
        raise TryAgainError(f"{place}: {error.strerror}; mend that, then the same command goes on") from error
    finally:
        directory.release()


def default_workers(spec: EvoMergeSpec) -> int:
    """As many sessions as the manifest allows and the machine has GPUs or, without one, cores for."""
    fitting = len(_gpus()) or max(1, _cores() // spec.evaluation.threads)
    return max(1, min(spec.parallelism, fitting))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: what this process may use, not what the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_environments(workers: int) -> list[dict[str, str]]:
    """The variables of each worker: one GPU each, round robin, where there are GPUs."""
    gpus = _gpus()
    # Idle OpenMP threads that spin make neighbours many times slower.
    quiet = {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    if not gpus:
        return [quiet]
    return [quiet | {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(workers)]


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu]
    return [str(i) for i, _ in enumerate(sorted(Path("/dev").glob("nvidia[0-9]*")))]


@contextmanager
def _log(directory: RunDirectory, identity: dict[str, object]) -> Iterator[RunLog]:
    log = RunLog(directory.log, identity)
    try:
        yield log
    finally:
        log.close()


def prepare(executor: Executor, manifest: EvoMerge, source: str, reports: Path) -> PrepareResult:
    """Carry out the prepare task.

    Raises:
        InputError: with every problem found, by field of the manifest.
        TryAgainError: storage did not answer.
    """
    report = carry_out(executor, prepare_task(manifest, reports.resolve().as_uri()))
    if report.prepare is not None:
        return report.prepare
    raise error_of(report, f"preparing the sources{executor.last_words()}", manifest, source)


def field_of(path: str, spec: EvoMergeSpec) -> str:
    """The manifest's field for a worker's `models.<name>…`, `base…` or `objectives.<name>.<split>…`."""
    kind, _, rest = path.partition(".")
    name, _, further = rest.partition(".")
    if kind == BASE:
        return f"spec.base.uri{'.' + rest if rest else ''}"
    if kind == "models":
        index = next((i for i, m in enumerate(spec.models) if m.name == name), None)
        return path if index is None else f"spec.models[{index}].uri{'.' + further if further else ''}"
    if kind == "objectives":
        index = next((i for i, o in enumerate(spec.evaluation.objectives) if o.name == name), None)
        return path if index is None else f"spec.evaluation.objectives[{index}].jsonl.{further}"
    return path


def search(
    executor: Executor, run: Run, log: RunLog, directory: RunDirectory, watcher: Watcher
) -> dict[Key, Candidate]:
    """Run baselines and candidates until all are finished and logged.

    Raises:
        RunError: too many candidates failed, or the input is wrong.
        TryAgainError: storage did not answer.
    """
    problem = plan.replay_problem(run, log.candidates)
    if problem:
        raise RunError(f"{directory.log} {problem}; restore it, or choose another directory with --out")
    progress = _Progress(run.stage)
    progress.replay(log.candidates)
    if not directory.facts.exists():
        _write_facts(run, {}, directory)  # for `evomerge report` on a run that is still going
    watcher.searching(run, progress.finished)
    unlogged = plan.log_order(run)[len(log.candidates) :]
    while True:
        for start in plan.next_starts(run, progress.state(), executor.idle):
            executor.start(start.task)
            progress.start(start)
        lost = plan.all_sources_failed(run, progress.finished)
        if lost:
            raise RunError(lost)
        watcher.moved(run, progress.finished, len(progress.running))
        if not progress.running:
            break
        for task, report in executor.wait():
            _settle(run, progress, task, report)
        while unlogged and unlogged[0] in progress.finished:
            log.append(progress.finished[unlogged.pop(0)])
    if plan.too_many_failures(run, progress.fitness):
        raise RunError(plan.failures_in_words(run, progress.finished))
    return progress.finished


def _settle(run: Run, progress: _Progress, task: Task, report: Report) -> None:
    trace = task.trace or {}
    key = Key(trace["stage"], trace["index"])
    start = progress.running.pop(key)
    if report.reason in ("InvalidInput", "TryAgain"):
        raise error_of(report, f"{key.stage} {key.index}", run.manifest)
    candidate = plan.settle(run, progress.state(), start, report)
    if candidate is None:
        progress.attempts[key] = progress.attempts.get(key, 0) + 1
    else:
        progress.finish(candidate)


def _finish(
    executor: Executor, run: Run, finished: dict[Key, Candidate], directory: RunDirectory, watcher: Watcher
) -> ConcludeResult:
    """Conclude, export and write the report."""
    task = plan.conclude_task(run, finished)
    watcher.concluding(len(task.finalists), len(task.baselines), len(task.mask_seeds or [task.mask_seed]))
    report = carry_out(executor, task)
    if report.conclude is None:
        raise error_of(report, f"scoring the finalists{executor.last_words()}", run.manifest)
    exported = carry_out(executor, plan.export_task(run, finished, report.conclude, directory.best.resolve().as_uri()))
    if exported.export is None:
        raise error_of(exported, f"exporting the winner{executor.last_words()}", run.manifest)
    recipe = plan.winner_recipe(run, finished, report.conclude)
    _write(directory.recipe, recipe_text(recipe, run.manifest, directory.path))
    render_report(_write_facts(run, finished, directory, report.conclude, recipe), directory.report)
    watcher.done(run, report.conclude, directory)
    return report.conclude


def _write_facts(
    run: Run,
    finished: dict[Key, Candidate],
    directory: RunDirectory,
    conclusion: ConcludeResult | None = None,
    recipe: Recipe | None = None,
) -> RunReport:
    """Write run.json: what the report shows."""
    facts = plan.run_report(run, finished, conclusion, recipe)
    _write(directory.facts, canonical_json(facts.wire()))
    return facts


def _write(path: Path, text: str) -> None:
    """Write a file so that it is there whole, or as it was, after any crash."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def carry_out(executor: Executor, task: Task) -> Report:
    """Hand one task to an idle worker and wait for its report."""
    executor.start(task)
    while True:
        for done, report in executor.wait():
            if done is task:
                return report


def error_of(report: Report, doing: str, manifest: EvoMerge, source: str | None = None) -> EvoMergeError:
    """What a report that no further attempt can mend means for the run; `source` is the manifest's file."""
    problems = [Problem(path=field_of(p.path, manifest.spec), message=p.message) for p in report.problems]
    if report.reason == "InvalidInput":
        return InputError(source or manifest.metadata.name, problems)
    if report.reason == "TryAgain":
        told = "; ".join(by_cause(problems)) or report.message
        return TryAgainError(f"{doing}: {told}; mend that, and the same command goes on later")
    return RunError(f"{doing}: {report.message} ({report.reason})")
