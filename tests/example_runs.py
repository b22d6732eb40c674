"""Runs made up for tests of the report and the model card: real spaces and searches, a made-up evaluation."""

import hashlib
import math
import random
from collections.abc import Mapping

from documents import LAYER_TENSORS
from evomerge_contract.candidate import Candidate, Genome
from evomerge_contract.manifest import BASE, EvoMerge, EvoMergeSpec
from evomerge_contract.methods import METHODS
from evomerge_contract.metrics import METRICS
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import (
    ConcludeResult,
    Interval,
    Layout,
    PreparedSource,
    PreparedSplit,
    PrepareResult,
    RunReport,
    ScoreRow,
    SelectRow,
)
from evomerge_contract.task import MASKS, Baseline, CardFacts, DataDigests, Source, mask_seeds
from evomerge_operator.search import make_search
from evomerge_operator.spaces import Space, baselines, default_baselines, make_space

ITEMS = 500
# What the quickstart's baselines score, in total and by skill, by role or name.
DARE_TIES = {
    "method": "dare_ties",
    "groups": {"everyLayer": True},
    "parameters": {"weight": {"min": "0", "max": "2"}, "density": {"min": "0.1", "max": "1"}},
}
"""A parameter space of a method that draws masks."""
_KNOWN = {"reader": (0.110, 1.0, 0.004), "counter": (0.020, 0.03, 0.002), "average": (0.346, 0.71, 0.31)}
_OTHERS = {"source": (0.08, 0.4, 0.01), "default": (0.27, 0.55, 0.22), "base": (0.97, 0.99, 0.96)}


def manifest(
    *,
    sources: tuple[str, ...] = ("reader", "counter"),
    parameter_space: Mapping[str, object] | None = None,
    candidates: int = 240,
    metrics: Mapping[str, str] | None = None,
    failures: int = 20,
    algorithm: str = "GA",
) -> EvoMerge:
    """A manifest like the quickstart's."""
    linear = {
        "method": "linear",
        "groups": {"layers": 6},
        "parameters": {"weight": {"min": "0", "max": "1", "sumsToOne": True}},
    }
    objectives = [
        {
            "name": name,
            "metric": metric,
            "jsonl": {s: f"file:///runs/data/{name}/{s}.jsonl" for s in ("search", "select", "test")},
        }
        for name, metric in (metrics or {"sums-ja": "exact_match"}).items()
    ]
    return EvoMerge.model_validate(
        {
            "apiVersion": "evomerge.dev/v1alpha1",
            "kind": "EvoMerge",
            "metadata": {"name": "evollm-mini"},
            "spec": {
                "models": [{"name": n, "uri": f"s3://models/{n}", "license": "apache-2.0"} for n in sources],
                "base": {"uri": "s3://models/base", "license": "apache-2.0"},
                "evaluation": {"objectives": objectives},
                "stages": [
                    {
                        "name": "ps",
                        "parameterSpace": parameter_space or linear,
                        "search": {"algorithm": algorithm, "candidates": candidates, "seed": 1},
                    }
                ],
                "budget": {"failures": failures},
            },
        }
    )


def prepared(spec: EvoMergeSpec, layers: int = 12) -> PrepareResult:
    """What preparing a tiny Llama of so many layers finds."""
    layout = Layout(
        layer_prefix="model.layers.",
        layers=layers,
        layer_tensors=LAYER_TENSORS,
        before=["model.embed_tokens.weight"],
        after=["lm_head.weight", "model.norm.weight"],
    )
    names = [m.name for m in spec.models] + [BASE]
    return PrepareResult(
        sources=[
            PreparedSource(name=n, digest=digest(n), bytes=2_582_144, dtype="bfloat16", parameters=1_290_000)
            for n in names
        ],
        layout=layout,
        data={
            o.name: {
                split: PreparedSplit(digest=digest(o.name + split), items=ITEMS, skills={"reading": 250, "sums": 250})
                for split in ("search", "select", "test")
            }
            for o in spec.evaluation.objectives
        },
    )


def finished_run(
    made: EvoMerge,
    *,
    done: int | None = None,
    fail_every: int = 80,
    skills: tuple[str, ...] = ("reading", "sums"),
    layers: int = 12,
) -> RunReport:
    """A run of `made`; with `done` it is unfinished after so many candidates. Every `fail_every`-th candidate fails."""
    spec = made.spec
    found = prepared(spec, layers)
    space = make_space(spec.stages[0], [m.name for m in spec.models], spec, found.layout, "bfloat16")
    candidates = _search(spec, space, fail_every, spec.stages[0].search.candidates if done is None else done)
    compared = baselines(spec, "bfloat16", default_baselines(spec))
    run = RunReport(
        run=made.metadata.name,
        manifest=made.wire(),
        prepared=found,
        baseline_names=[b.name for b in compared],
        genes=[g.label for g in space.genes],
        baselines=[_baseline(b, i) for i, b in enumerate(compared)],
        candidates=candidates,
    )
    scored = sorted((c for c in candidates if c.fitness is not None), key=lambda c: -(c.fitness or 0))
    if done is not None or not scored:
        return run
    conclusion = conclude(spec, scored[:5], compared, skills)
    genome = candidates[conclusion.winner].genome or ()
    return run.model_copy(update={"conclusion": conclusion, "recipe": space.decode(genome)})


def conclude(
    spec: EvoMergeSpec,
    best: list[Candidate],
    compared: list[Baseline],
    skills: tuple[str, ...],
) -> ConcludeResult:
    """The end: the winner's test score is a little below its fitness."""
    rng = random.Random(2)
    select = [
        SelectRow(
            index=c.index, fitness=c.fitness or 0.0, score=round((c.fitness or 0.0) - 0.01 - rng.random() * 0.04, 3)
        )
        for c in best
    ]
    drawn = METHODS[spec.stages[0].space.method].random
    if drawn:
        select = [_with_masks(row, random.Random(row.index)) for row in select]
    chosen = max(select, key=lambda r: r.score)
    total = round(chosen.fitness - 0.02, 3)
    names = [o.name for o in spec.evaluation.objectives]
    single = len(names) == 1

    def row(name: str, role: str, figures: tuple[float, float, float]) -> ScoreRow:
        half = 1.96 * math.sqrt(abs(figures[0] * (1 - figures[0])) / ITEMS + 1e-5)
        gap = 1.96 * math.sqrt((abs(figures[0] * (1 - figures[0])) + 0.2) / ITEMS)
        keys = [s if single else f"{n}/{s}" for n in names for s in skills]
        return ScoreRow(
            name=name,
            role=role,  # type: ignore[arg-type]
            score=figures[0],
            interval=Interval(low=figures[0] - half, high=figures[0] + half),
            scores=dict.fromkeys(names, figures[0]),
            skills={k: figures[1 + i % 2] for i, k in enumerate(keys)},
            winner_minus=None if role == "winner" else total - figures[0],
            winner_minus_interval=None
            if role == "winner"
            else Interval(low=total - figures[0] - gap, high=total - figures[0] + gap),
        )

    test = [row("winner", "winner", (total, 0.884, 0.612))] + [row(b.name, b.role, known(b)) for b in compared]
    source = max((r for r in test if r.role == "source"), key=lambda r: r.score)
    assert source.winner_minus_interval is not None
    return ConcludeResult(
        winner=chosen.index,
        select=select,
        test=test,
        test_items=ITEMS * len(names),
        best_source=source.name,
        beats_best_source=source.winner_minus_interval.low > 0,
        mask_seeds=mask_seeds(spec.stages[0].search.seed) if drawn else None,
    )


def _with_masks(row: SelectRow, rng: random.Random) -> SelectRow:
    scores = [round(row.score - 0.05 * rng.random(), 3) for _ in range(MASKS)]
    update = {"score": math.fsum(scores) / MASKS, "mask_scores": scores, "spread": max(scores) - min(scores)}
    return row.model_copy(update=update)


def card_of(run: RunReport) -> tuple[CardFacts, list[Source], Recipe]:
    """What the model card of a finished run is made of."""
    spec = EvoMerge.model_validate(run.manifest).spec
    assert run.conclusion is not None
    assert run.recipe is not None
    assert spec.base is not None
    stage = spec.stages[0]
    given = {m.name: m for m in spec.models} | {BASE: spec.base}
    facts = CardFacts(
        run=run.run,
        method=stage.space.method,
        algorithm=run.candidates[0].algorithm,
        candidates=stage.search.candidates,
        seed=stage.search.seed,
        objectives=spec.evaluation.objectives,
        data={
            name: DataDigests(search=s["search"].digest, select=s["select"].digest, test=s["test"].digest)
            for name, s in run.prepared.data.items()
        },
        conclusion=run.conclusion,
    )
    sources = [
        Source(name=s.name, uri=given[s.name].uri, license=given[s.name].license, digest=s.digest)
        for s in run.prepared.sources
    ]
    return facts, sources, run.recipe


def known(baseline: Baseline) -> tuple[float, float, float]:
    """A baseline's total and two skills."""
    return _KNOWN.get(baseline.name) or _KNOWN.get(baseline.role) or _OTHERS[baseline.role]


def digest(text: str) -> str:
    """The digest of a text."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _baseline(baseline: Baseline, index: int) -> Candidate:
    fitness = known(baseline)[0]
    return Candidate(
        stage="baselines",
        index=index,
        role=baseline.role,
        name=baseline.name,
        recipe=baseline.recipe,
        recipe_digest=baseline.recipe.digest,
        algorithm="ga-1",
        outcome="Succeeded",
        fitness=fitness,
        seconds={"total": 0.2},
    )


def _search(spec: EvoMergeSpec, space: Space, fail_every: int, done: int) -> list[Candidate]:
    stage = spec.stages[0]
    search = make_search(stage.search, space.genes, stage.name, spec.evaluation.objectives)
    rng = random.Random(stage.search.seed)
    target = [g.low + rng.choice((0.1, 0.25, 0.75, 0.9)) * (g.high - g.low) for g in space.genes]
    fitness: list[float | None] = []
    candidates = []
    for index in range(done):
        while search.told < index - stage.search.lag + 1:
            outcome = fitness[search.told]
            search.tell(None if outcome is None else _scores(spec, outcome))
        genome = search.ask()
        failed = index % fail_every == fail_every - 1
        value = None if failed else _fitness(space, genome, target, rng)
        fitness.append(value)
        candidates.append(_candidate(stage.name, index, genome, value, search.version, rng))
    return candidates


def _scores(spec: EvoMergeSpec, fitness: float) -> dict[str, float]:
    """Scores of all objectives that come to this fitness."""
    lower = {o.name: METRICS[o.metric].lower_is_better for o in spec.evaluation.objectives}
    return {name: -fitness if better else fitness for name, better in lower.items()}


def _fitness(space: Space, genome: Genome, target: list[float], rng: random.Random) -> float:
    off = sum(((v - t) / (g.high - g.low)) ** 2 for v, t, g in zip(genome, target, space.genes, strict=True))
    chance = 0.72 * math.exp(-7 * off / len(genome))
    return sum(rng.random() < chance for _ in range(ITEMS)) / ITEMS


def _candidate(
    stage: str, index: int, genome: Genome, fitness: float | None, version: str, rng: random.Random
) -> Candidate:
    failed = fitness is None
    phases = {
        "pull": 0.0004,
        "load": 0.003,
        "merge": 0.011 + 0.002 * rng.random(),
        "evaluate": 0.18 + 0.04 * rng.random(),
    }
    return Candidate(
        stage=stage,
        index=index,
        generation=index // 16,
        genome=genome,
        recipe_digest=digest(str(genome)),
        algorithm=version,
        outcome="Failed" if failed else "Succeeded",
        fitness=fitness,
        scores={} if failed else {"sums-ja": fitness or 0.0},
        reason="OutOfMemory" if failed else None,
        message="the worker's memory did not suffice for 4,096 tokens" if failed else None,
        seconds=phases | {"total": sum(phases.values()) + 0.004},
        host="laptop",
    )
