"""`evomerge run`: the planner, driven on one machine."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from evomerge_contract.base import canonical_json
from evomerge_contract.candidate import Candidate
from evomerge_contract.manifest import EvoMerge
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import ConcludeResult, PrepareResult, RunReport, SelectResult
from evomerge_operator.errors import InputError, TryAgainError
from evomerge_operator.local.carry_out import Executor, carry_out, error_of, prepare
from evomerge_operator.local.commits import known_commits, remembered
from evomerge_operator.local.directory import RunDirectory
from evomerge_operator.local.executor import LocalExecutor
from evomerge_operator.local.files import write_whole
from evomerge_operator.local.log import RunLog, read_log
from evomerge_operator.local.search import SearchWatcher, search
from evomerge_operator.local.stage_winners import drop_winners, leave_winner
from evomerge_operator.local.worker_command import render_report
from evomerge_operator.local.workers import worker_environments
from evomerge_operator.plan.finish import (
    best_stage,
    conclude_task,
    export_task,
    finalists,
    run_report,
    scored_baselines,
    select_task,
    stage_winner_recipe,
    stops,
    winner_recipe,
)
from evomerge_operator.plan.proposer import Proposer, begin_stage
from evomerge_operator.plan.run import BASELINES, Run, StageRun, at_commits, default_names, identity, make_run
from evomerge_operator.recipes import Seeded, made_of, recipe_text


class Watcher(SearchWatcher, Protocol):
    """Who is told how a run goes."""

    def preparing(self, manifest: EvoMerge, directory: RunDirectory, workers: int) -> None:
        """The sources are being pulled and checked."""

    def selecting(self, finalists: int, masks: int) -> None:
        """The search is done; finalists are being scored on select items, each with so many masks."""

    def writing(self, stage: StageRun) -> None:
        """The winner of a stage is being written, for those that follow."""

    def concluding(self, baselines: int) -> None:
        """The winner and so many baselines are being scored on test items."""

    def done(self, run: Run, conclusion: ConcludeResult, directory: RunDirectory) -> None:
        """All is written."""


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
            prepared = prepare(executor, at_commits(manifest, earlier), source, directory.reports)
            prepared = remembered(prepared, manifest, earlier)
            with _log(directory, manifest, prepared) as log:
                run = make_run(manifest, prepared, directory.reports.resolve().as_uri(), log.baselines)
                found = deque(log.found)
                of_models = prepared
                for number in range(len(manifest.spec.stages)):
                    proposer = begin_stage(run, number, of_models)
                    if not directory.facts.exists():
                        _write_facts(run, [], directory)  # for `evomerge report` on a run that is still going
                    search(executor, run, proposer, log, found, watcher)
                    searched = _searched(directory, run.stage)
                    selected = run.stage.selected = _select(executor, run, proposer, searched, watcher)
                    if selected is not None and len(manifest.spec.stages) > 1:
                        winner = searched[selected.ranked[0].index]
                        watcher.writing(run.stage)
                        of_models = leave_winner(executor, run, proposer, selected, winner, source, directory)
                    if stops(run):
                        break
            return _finish(executor, run, directory, watcher)
    except InputError:
        directory.discard()
        raise
    except OSError as error:
        place = error.filename or directory.path
        raise TryAgainError(f"{place}: {error.strerror}; mend that, then the same command goes on") from error
    finally:
        directory.release()


@contextmanager
def _log(directory: RunDirectory, manifest: EvoMerge, prepared: PrepareResult) -> Iterator[RunLog]:
    log = RunLog(directory.log, identity(manifest, prepared), default_names(manifest, prepared))
    try:
        yield log
    finally:
        log.close()


def _select(
    executor: Executor, run: Run, proposer: Proposer, searched: Sequence[Candidate], watcher: Watcher
) -> SelectResult | None:
    """Rank the finalists of the run's stage, whose log is `searched`; None where the run is concluded by one task."""
    if run.pinned is None:
        return None
    chosen = finalists(proposer, run.stage.progress.results)
    task = select_task(proposer, [searched[index] for index in chosen])
    watcher.selecting(len(task.finalists), len(task.mask_seeds or [task.mask_seed]))
    report = carry_out(executor, task)
    if report.select is None:
        raise error_of(report, f"scoring the finalists{executor.last_words()}", run.manifest)
    return report.select


def _searched(directory: RunDirectory, stage: StageRun) -> list[Candidate]:
    """The candidates of a stage by index, with their genomes."""
    return [candidate for candidate in read_log(directory.log) if candidate.stage == stage.name]


def _finish(executor: Executor, run: Run, directory: RunDirectory, watcher: Watcher) -> ConcludeResult:
    """Conclude, export and write the report."""
    number = best_stage(run)
    stage = run.stages[number]
    proposer, searched = Proposer(run.common, number, stage.prepared), _searched(directory, stage)
    chosen = finalists(proposer, stage.progress.results)
    task = conclude_task(proposer, [searched[index] for index in chosen], stage.selected, scored_baselines(run))
    watcher.concluding(len(task.baselines))
    report = carry_out(executor, task)
    if report.conclude is None:
        raise error_of(report, f"scoring the test items{executor.last_words()}", run.manifest)
    winner = searched[report.conclude.winner]
    recipe, seed = winner_recipe(proposer, winner), stage.stage.search.seed
    earlier = made_of(recipe, _earlier_recipes(run, number, directory))
    parts = {name: one.recipe for name, one in earlier.items()}
    out = directory.best.resolve().as_uri()
    exported = carry_out(executor, export_task(proposer, winner, report.conclude, out, earlier=parts))
    if exported.export is None:
        raise error_of(exported, f"exporting the winner{executor.last_words()}", run.manifest)
    text = recipe_text(Seeded(recipe, seed), run.manifest, directory.path, earlier)
    write_whole(directory.recipe, text.encode())
    everyone = [candidate for candidate in read_log(directory.log) if candidate.stage != BASELINES]
    render_report(_write_facts(run, everyone, directory, report.conclude, recipe), directory.report)
    drop_winners(directory)
    watcher.done(run, report.conclude, directory)
    return report.conclude


def _earlier_recipes(run: Run, until: int, directory: RunDirectory) -> dict[str, Seeded]:
    """The recipes of the winners of the stages before one, by the stages' names."""
    found = {}
    for number, stage in enumerate(run.stages[:until]):
        if stage.selected is not None:
            proposer = Proposer(run.common, number, stage.prepared)
            winner = _searched(directory, stage)[stage.selected.ranked[0].index]
            recipe = stage_winner_recipe(proposer, stage.selected, winner)
            found[stage.name] = Seeded(recipe, stage.stage.search.seed)
    return found


def _write_facts(
    run: Run,
    candidates: Sequence[Candidate],
    directory: RunDirectory,
    conclusion: ConcludeResult | None = None,
    recipe: Recipe | None = None,
) -> RunReport:
    """Write run.json: what the report shows."""
    facts = run_report(run, candidates, conclusion, recipe)
    write_whole(directory.facts, canonical_json(facts.wire()).encode())
    return facts
