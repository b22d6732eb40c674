"""The page of a run: did it work, how, what came out, can it be trusted. One file that needs nothing else."""

from importlib.metadata import version
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evomerge_contract import text
from evomerge_contract.candidate import Candidate
from evomerge_contract.manifest import BASE, SPLITS, Base, DataFlowSpace, EvoMerge, EvoMergeSpec
from evomerge_contract.report import RunReport
from evomerge_worker.report.accounts import failures, phases
from evomerge_worker.report.answer import answer
from evomerge_worker.report.colour import shade
from evomerge_worker.report.finalists_chart import finalists_chart
from evomerge_worker.report.fitness_chart import Line, fitness_chart, thinned
from evomerge_worker.report.genome_chart import genome_chart, stretches
from evomerge_worker.report.path_chart import path_chart
from evomerge_worker.report.score_table import counted_negatively, score_table
from evomerge_worker.report.stage import of_stage, stage_of
from evomerge_worker.report.winner_grid import winner_grid

MOST_GENES = 1000
"""Rows of a chart that keep the page small; of more genes it draws none."""


def render(run: RunReport) -> str:
    """The whole page as HTML: no script, no second file, nothing fetched. Equal runs give equal pages.

    Raises:
        pydantic.ValidationError: the manifest in `run` is not one of this version.
    """
    spec = EvoMerge.model_validate(run.manifest).spec
    run = of_stage(run, spec)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = (text.score, text.signed, text.interval, text.seconds, text.size, text.count, text.listing)
    environment.globals.update({word.__name__: word for word in words})
    sections = (
        _heading(run, spec) | _results(run, spec) | _course(run, spec) | _outcome(run, spec) | _evidence(run, spec)
    )
    return environment.get_template("report.html.j2").render(run=run, spec=spec, stage=stage_of(run, spec), **sections)


def _heading(run: RunReport, spec: EvoMergeSpec) -> dict[str, object]:
    return {"answer": answer(run, spec), "version": version("evomerge")}


def _results(run: RunReport, spec: EvoMergeSpec) -> dict[str, object]:
    """Did it work?"""
    lines = sorted(_lines(run.baselines, spec), key=lambda line: -line.fitness)
    unscored = [c.name for c in run.baselines if c.fitness is None]
    table = score_table(run.conclusion, spec.evaluation.objectives) if run.conclusion else None
    return {
        "table": table,
        "lines": lines,
        "unscored": unscored,
        "negative": counted_negatively(spec.evaluation.objectives),
        "best": _best(run.candidates),
    }


def _course(run: RunReport, spec: EvoMergeSpec) -> dict[str, object]:
    """How did it get there?"""
    lines = _lines(run.baselines, spec)
    winner = run.conclusion.winner if run.conclusion else None
    scored = [c for c in run.candidates if c.fitness is not None]
    budget = stage_of(run, spec).search.candidates
    chart = fitness_chart(run.candidates, lines, winner, budget) if scored or lines else None
    return {
        "fitness_chart": chart,
        "scored": len(scored),
        "drawn": len(thinned(scored, winner)),
        "failed": len(run.candidates) - len(scored),
        "search_items": sum(splits["search"].items for splits in run.prepared.data.values()),
    }


def _outcome(run: RunReport, spec: EvoMergeSpec) -> dict[str, object]:
    """What came out?"""
    space, models = stage_of(run, spec).space, len(spec.models)
    flows = isinstance(space, DataFlowSpace)
    grid = winner_grid(run.recipe, run.prepared.layout, space.parameters, models) if run.recipe and not flows else None
    path = path_chart(run.recipe) if run.recipe and flows else None
    recipe = None
    if run.recipe:
        recipe = yaml.safe_dump(
            run.recipe.plain(), sort_keys=False, allow_unicode=True, default_flow_style=None, width=120
        )
    return {"grid": grid, "path": path, "recipe": recipe, **_genomes(run, spec)}


def _genomes(run: RunReport, spec: EvoMergeSpec) -> dict[str, object]:
    chosen = _best(run.candidates)
    heading = "best"
    if run.conclusion:
        chosen = next(c for c in run.candidates if c.index == run.conclusion.winner)
        heading = "winner"
    if not 0 < len(run.genes) <= MOST_GENES or chosen is None or chosen.genome is None:
        return {"genome_chart": None, "stretch": 0, "shades": {}, "sums": []}
    space = stage_of(run, spec).space
    shades = {
        name: shade(
            space.parameters.get(name),
            len(spec.models),
            (c.genome[i] for i, g in enumerate(run.genes) if g.parameter == name for c in run.candidates if c.genome),
        )
        for name in dict.fromkeys(g.parameter for g in run.genes)
    }
    sums = [name for name in shades if name in space.parameters and space.parameters[name].sums_to_one]
    columns = stretches(run.candidates, len(run.genes))
    chart = genome_chart(run.genes, shades, columns, (heading, chosen.genome))
    return {"genome_chart": chart, "stretch": len(run.candidates) / len(columns), "shades": shades, "sums": sums}


def _evidence(run: RunReport, spec: EvoMergeSpec) -> dict[str, object]:
    """Can I trust it?"""
    everyone = [*run.baselines, *run.candidates]
    given: dict[str, Base] = {m.name: m for m in spec.models} | ({BASE: spec.base} if spec.base else {})
    finalists = winner = None
    if run.conclusion:
        finalists = sorted(run.conclusion.select, key=lambda r: -r.score)
        winner = next(r for r in run.conclusion.test if r.role == "winner")
    return {
        "finalists_chart": finalists_chart(run.conclusion) if run.conclusion else None,
        "finalists": finalists,
        "winner": winner,
        "failures": failures(everyone),
        "retried": sum(c.attempts > 1 for c in everyone),
        "phases": phases(run.candidates),
        "worker_seconds": sum(c.seconds.get("total", 0.0) for c in everyone),
        "hosts": len({c.host for c in everyone if c.host}),
        "algorithms": sorted({c.algorithm for c in run.candidates}) or [stage_of(run, spec).search.algorithm],
        "sources": [(s, given[s.name]) for s in run.prepared.sources],
        "splits": SPLITS,
        "manifest": yaml.safe_dump(run.manifest, sort_keys=False, allow_unicode=True, width=120),
    }


def _lines(baselines: list[Candidate], spec: EvoMergeSpec) -> list[Line]:
    """The baselines that were scored on search items."""
    return [Line(c.name or "", _role(c, spec), c.fitness) for c in baselines if c.fitness is not None]


def _role(baseline: Candidate, spec: EvoMergeSpec) -> str:
    """A baseline's role; of a run that began before baselines said it, as far as name and recipe tell."""
    if baseline.role is not None:
        return baseline.role
    if baseline.name == BASE:
        return "base"
    if baseline.name in {m.name for m in spec.models}:
        return "source"
    return "average" if baseline.recipe is not None and baseline.recipe.merge_method == "linear" else "default"


def _best(candidates: list[Candidate]) -> Candidate | None:
    """The best on search items; the earlier wins a tie."""
    scored = [c for c in candidates if c.fitness is not None]
    return max(scored, key=lambda c: (c.fitness or 0.0, -c.index)) if scored else None
