"""Tasks, the worker's unit of work, and the reports it answers with.

A task is one of four kinds: prepare, evaluate, conclude, export. A session takes tasks as NDJSON and prints one line
per report once that report is durable. The worker knows nothing of generations or genomes: what it should copy into
its report rides in `trace`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from evomerge_contract.base import Contract, Digest, digest_of
from evomerge_contract.candidate import Candidate, FailureReason, Outcome
from evomerge_contract.manifest import Objective, SplitName, Storage
from evomerge_contract.recipe import DTypeName, Recipe

_NOT_IDENTITY = {"storage", "report_dir", "timeout_seconds", "trace"}


class Source(Contract):
    """A model as a task names it: `name` is what recipes say; `digest` (of the content) pins it once prepared."""

    name: str
    uri: str
    digest: Digest | None = None
    license: str | None = None


class DataDigests(Contract):
    """Content digests of an objective's three splits, known once prepared."""

    search: Digest
    select: Digest
    test: Digest


class TaskBase(Contract):
    """What every task carries.

    `sources` holds every model a recipe of the task may name, the base (named "base") included.
    `report_dir` is a `file://` folder; the report lies there as `<hex of the digest>.json`.
    """

    sources: list[Source]
    storage: Storage = Storage()
    trust_remote_code: bool = False
    threads: int = 1
    batch_size: int = 32
    timeout_seconds: int = 3600
    report_dir: str
    trace: dict[str, Any] | None = None

    @property
    def digest(self) -> str:
        """The identity of the work: contents by their digests instead of URIs; no storage, limits or trace."""
        wire = self.model_dump(mode="json", by_alias=False, exclude_none=True, exclude=_NOT_IDENTITY)
        wire["sources"] = [{k: s[k] for k in ("name", "digest" if "digest" in s else "uri")} for s in wire["sources"]]
        if "data" in wire:
            for objective in wire["objectives"]:
                del objective["jsonl"]
        return digest_of(wire)


class PrepareTask(TaskBase):
    """Pin every source and data set, and find everything that keeps them from being merged and evaluated.

    `methods` are the merge methods that will be used. Never answered from an earlier report.
    """

    kind: Literal["prepare"] = "prepare"
    objectives: list[Objective]
    methods: list[str]


class EvaluateTask(TaskBase):
    """Merge one recipe into a live model and score it on one split."""

    kind: Literal["evaluate"] = "evaluate"
    recipe: Recipe
    mask_seed: int = 0
    objectives: list[Objective]
    data: dict[str, DataDigests]
    split: SplitName = "search"


class Finalist(Contract):
    """A candidate that is scored on select items."""

    index: int
    fitness: float
    recipe: Recipe


class Baseline(Contract):
    """What the winner is compared with. `role` says how it may be read."""

    name: str
    role: Literal["source", "average", "default", "base"]
    recipe: Recipe


class ConcludeTask(TaskBase):
    """Score finalists on select items, the best of them and the baselines once on test items, with intervals."""

    kind: Literal["conclude"] = "conclude"
    finalists: list[Finalist] = Field(min_length=1)
    baselines: list[Baseline]
    mask_seed: int = 0
    bootstrap_seed: int = 0
    objectives: list[Objective]
    data: dict[str, DataDigests]


class ExportTask(TaskBase):
    """Write the merged checkpoint, its recipe and its model card to the folder `out` (replaced as a whole)."""

    kind: Literal["export"] = "export"
    out: str
    recipe: Recipe
    mask_seed: int = 0
    card: "CardFacts"


Task = Annotated[PrepareTask | EvaluateTask | ConcludeTask | ExportTask, Field(discriminator="kind")]
task_adapter: TypeAdapter[Task] = TypeAdapter(Task)


class Layout(Contract):
    """The tensors of the models, compactly: `{layer_prefix}{i}.{t}` for every layer i and t in `layer_tensors`.

    `before` and `after` are the tensors outside the layers: embeddings, and final norm with head.
    """

    layer_prefix: str
    layers: int = Field(ge=1)
    layer_tensors: list[str]
    before: list[str]
    after: list[str]


class PreparedSource(Contract):
    """A source as found: content digest, size in bytes, the dtype of its weights, number of parameters."""

    name: str
    digest: Digest
    bytes: int
    dtype: DTypeName
    parameters: int


class PreparedSplit(Contract):
    """A split as found: content digest, number of items, items per skill."""

    digest: Digest
    items: int
    skills: dict[str, int] = {}


class PrepareResult(Contract):
    """All that is pinned and known before the first candidate."""

    sources: list[PreparedSource]
    layout: Layout
    data: dict[str, dict[SplitName, PreparedSplit]]
    versions: dict[str, str] = {}
    """Of the worker's libraries, by distribution."""


class ItemScore(Contract):
    """One item: an aggregate is sum(value) / sum(count), for perplexity exp of that.

    value: 1.0 or 0.0 with count 1 (exact_match, acc, acc_norm); negative log-likelihood in nats and tokens
    (perplexity).
    """

    value: float
    count: float = 1.0
    skill: str | None = None


class EvaluateResult(Contract):
    """`scores` per objective in the metric's own direction; `items` only in the durable report, not in the line."""

    scores: dict[str, float]
    items: dict[str, list[ItemScore]] = {}


class Interval(Contract):
    """A 95 % interval."""

    low: float
    high: float


class TestRow(Contract):
    """One row of the final table. `score` is the fitness on test items: the weighted mean over objectives, higher is
    better. `skills` maps a skill to its score where an objective's items name one (several objectives:
    "objective/skill"). `winner_minus` is the winner's score minus this one with a paired bootstrap interval."""

    name: str
    role: Literal["winner", "source", "average", "default", "base"]
    score: float
    interval: Interval
    scores: dict[str, float]
    skills: dict[str, float] = {}
    winner_minus: float | None = None
    winner_minus_interval: Interval | None = None


class SelectRow(Contract):
    """A finalist's fitness on search and on select items."""

    index: int
    fitness: float
    score: float


class ConcludeResult(Contract):
    """The end of a run. `best_source` is the source with the highest test score: the hardest to beat.

    `unscored` names the finalists ("finalist 12") and baselines that could not be scored, with the reason.
    """

    winner: int
    select: list[SelectRow]
    test: list[TestRow]
    test_items: int
    best_source: str
    beats_best_source: bool = Field(description="The interval of winner minus best source lies above 0.")
    unscored: dict[str, str] = {}


class CardFacts(Contract):
    """What the model card says beyond the recipe."""

    run: str
    method: str
    algorithm: str
    candidates: int
    seed: int
    objectives: list[Objective]
    data: dict[str, DataDigests]
    conclusion: ConcludeResult


class ExportResult(Contract):
    """The files written under `out`, with their digests."""

    out: str
    files: dict[str, Digest]


class Problem(Contract):
    """One mistake in the input: where (a field path of the manifest, or a file, tensor, line) and what to do."""

    path: str
    message: str


class Report(Contract):
    """The answer to a task. Exactly one of `result` (of the task's kind) and `reason` is there."""

    task: Digest
    kind: Literal["prepare", "evaluate", "conclude", "export"]
    outcome: Outcome
    prepare: PrepareResult | None = None
    evaluate: EvaluateResult | None = None
    conclude: ConcludeResult | None = None
    export: ExportResult | None = None
    reason: FailureReason | None = None
    message: str | None = None
    problems: list[Problem] = []
    seconds: dict[str, float] = {}
    host: str | None = None
    trace: dict[str, Any] | None = None

    def line(self) -> str:
        """The report as the one line that goes out: without the items, which stay in the durable report."""
        short = self
        if self.evaluate is not None:
            short = self.model_copy(update={"evaluate": EvaluateResult(scores=self.evaluate.scores)})
        return short.model_dump_json(exclude_none=True, by_alias=True)


class RunReport(Contract):
    """Everything `report.html` shows. `conclusion` is None while the search still runs."""

    run: str
    manifest: dict[str, Any]
    prepared: PrepareResult
    genes: list[str]
    baselines: list[Candidate]
    candidates: list[Candidate]
    conclusion: ConcludeResult | None = None
    recipe: Recipe | None = None


LOWER_IS_BETTER = frozenset({"perplexity"})


def fitness_of(objectives: list[Objective], scores: dict[str, float]) -> float:
    """Weighted mean of the scores, those where lower is better negated, so that higher is better.

    Raises:
        KeyError: an objective has no score.
    """
    total = sum(float(o.weight) for o in objectives)
    signed = (
        float(o.weight) * (-scores[o.name] if o.metric in LOWER_IS_BETTER else scores[o.name]) for o in objectives
    )
    return sum(signed) / total
