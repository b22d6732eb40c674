"""Reports, the answers to tasks, and what they are made of."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, FiniteFloat, PlainSerializer

from evomerge_contract.base import Contract, Digest
from evomerge_contract.candidate import Candidate, FailureReason, GeneLabel, OutcomeName, Role
from evomerge_contract.manifest import Objective, SplitName
from evomerge_contract.metrics import METRICS
from evomerge_contract.name_pattern import compress, expand
from evomerge_contract.recipe import DTypeName, Recipe

_MOST_LISTED = 64
_MOST_NAMES = 20_000
"""No model has so many tensors of different names; a note that says so is not believed."""


def _compact(names: list[str]) -> list[str] | str:
    """On the wire, many names are a pattern; few are a list, and so are names that a pattern would not give back."""
    pattern = compress(names) if len(names) > _MOST_LISTED else None
    return pattern if pattern is not None and expand(pattern) == names else names


TensorNames = Annotated[
    list[str],
    BeforeValidator(lambda names: expand(names) if isinstance(names, str) else names),
    Field(max_length=_MOST_NAMES),
    PlainSerializer(_compact, when_used="json"),
]


class Flow(Contract):
    """How the scale of a hop is folded into a layer's weights.

    Names are those of `Layout.layer_tensors`, and filters of a recipe; experts that lie one by one are named as the
    tensor that they are fused to in memory, as mergekit has them.

    A hop's scale multiplies the input of its layer. Where c is the product of the scales of a layer's hop and all
    before it, the layer's tensors in `divided` are divided by c and those in `multiplied` multiplied by it. `about`
    holds, for tensors that are scaled about another origin than 0, that origin: w becomes (w - origin) / c + origin.
    `layers` is each source's number of layers.
    """

    divided: TensorNames
    multiplied: TensorNames = []
    about: dict[str, float] = {}
    layers: dict[str, int]


class Layout(Contract):
    """The tensors of the models: `{layer_prefix}{i}.{t}` for layers i and t in `layer_tensors`, and those outside.

    `layer_tensors` is the union over the layers (some families' first layers differ from the rest); `before`
    and `after` are the tensors outside the layers: embeddings, and final norm with head. `flow` is there where a stage
    searches the order of the layers.
    """

    layer_prefix: str
    layers: int = Field(ge=1)
    layer_tensors: TensorNames
    before: TensorNames
    after: TensorNames
    flow: Flow | None = None


class PreparedSource(Contract):
    """A source as found: content digest, size in bytes, the dtype of its weights, number of parameters.

    `commits` are the places at the hub that named no commit, each with the one that it had then.
    """

    name: str
    digest: Digest
    bytes: int
    dtype: DTypeName
    parameters: int
    commits: dict[str, str] | None = None


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
    """One item. What value and count are, and how items make a score, is the metric's to say (`METRICS`)."""

    value: FiniteFloat
    count: FiniteFloat = 1.0
    skill: str | None = None


class EvaluateResult(Contract):
    """`scores` per objective in the metric's own direction; `items` only in the durable report, not in the line."""

    scores: dict[str, FiniteFloat]
    items: dict[str, list[ItemScore]] = {}


class Interval(Contract):
    """A 95 % interval."""

    low: float = Field(description="Its lower end.")
    high: float = Field(description="Its upper end.")


class ScoreRow(Contract):
    """One row of the final table."""

    name: str = Field(description="The winner, a source, or another baseline.")
    role: Literal["winner", Role] = Field(description="How the row may be read.")
    score: float = Field(description="The fitness on test items: the weighted mean over objectives, higher is better.")
    interval: Interval = Field(description="The 95 % interval of the score.")
    scores: dict[str, float] = Field(description="Per objective, in the metric's own direction.")
    skills: dict[str, float] = Field(
        {}, description="Per skill where items name one; with several objectives the key is objective/skill."
    )
    layers: int | None = Field(None, description="Where models differ in it: how many layers it has.")
    parameters: int | None = Field(None, description="With layers: how many parameters it has.")
    cost: float | None = Field(
        None,
        description="With layers: the parameters that a token passes, as a multiple of the first source's.",
    )
    winner_minus: float | None = Field(None, description="The winner's score minus this one.")
    winner_minus_interval: Interval | None = Field(
        None, description="The 95 % interval of that, by a paired bootstrap."
    )


class SelectRow(Contract):
    """A finalist's fitness on search and on select items."""

    index: int = Field(description="The candidate.")
    fitness: float = Field(description="On search items.")
    score: float = Field(description="On select items: the highest is the winner. With maskScores, their mean.")
    mask_scores: list[float] | None = Field(
        None, description="Where the method draws masks: on select items, with each of maskSeeds."
    )
    spread: float | None = Field(None, description="The highest of maskScores minus the lowest.")


class PoolRow(Contract):
    """A model that a stage merges, alone."""

    name: str = Field(description="The model.")
    score: float = Field(description="On select items.")


class SelectResult(Contract):
    """A stage's finalists, ranked on select items."""

    ranked: list[SelectRow] = Field(min_length=1, description="The finalists that could be scored, the best first.")
    unscored: dict[str, str] = Field(
        {}, description='Finalists ("finalist 12") that could not be scored, with the reason.'
    )
    mask_seeds: list[int] | None = Field(
        None, description="Where the method draws masks: the seeds that the finalists were scored with."
    )
    pool: list[PoolRow] | None = Field(
        None, max_length=43, description="Of several stages: the models that this one merges, each alone."
    )

    @property
    def best_of_pool(self) -> PoolRow | None:
        """The best model of the pool alone, of those that could be scored; the earlier of two that are equal."""
        return max(self.pool or (), key=lambda row: row.score, default=None)

    @property
    def gain(self) -> float | None:
        """How much better the best finalist is than the best model of the pool; None where that was not asked."""
        best = self.best_of_pool
        return None if best is None else self.ranked[0].score - best.score

    @property
    def gained(self) -> bool:
        """Whether the best finalist is better than every model of the pool, as far as was asked."""
        return self.gain is None or self.gain > 0


class ConcludeResult(Contract):
    """The end of a run."""

    winner: int = Field(description="The index of the candidate that won.")
    stage: str | None = Field(None, description="The stage that it is of, where there are several.")
    select: list[SelectRow] = Field(description="The finalists, on select items.")
    test: list[ScoreRow] = Field(description="The winner and the baselines, on test items.")
    test_items: int = Field(description="How many test items there are.")
    best_source: str = Field(description="The source with the highest test score: the hardest to beat.")
    beats_best_source: bool = Field(description="The interval of winner minus best source lies above 0.")
    unscored: dict[str, str] = Field(
        {}, description='Finalists ("finalist 12") and baselines that could not be scored, with the reason.'
    )
    mask_seeds: list[int] | None = Field(
        None,
        description="Where the method draws masks: the seeds that the finalists were scored with. The first is the "
        "run's own, which the exported weights and every row of the test table have.",
    )

    @property
    def chosen(self) -> SelectRow | None:
        """The winner's row among the finalists."""
        return next((row for row in self.select if row.index == self.winner), None)

    @property
    def lead(self) -> float:
        """The winner's score minus the best source's, on test items."""
        rows = (row for row in self.test if row.role == "source" and row.name == self.best_source)
        return next((row.winner_minus for row in rows if row.winner_minus is not None), 0.0)

    @property
    def within_luck(self) -> bool:
        """Whether there is a lead, and other masks move the winner's score by more than that: it may be luck of the
        draw, though the exported weights have it."""
        spread = self.chosen.spread if self.chosen else None
        return spread is not None and 0 < self.lead < spread


EXPORT_MARK = ".evomerge"
"""The file that tells a folder written by an export; only such a folder, or an empty one, is ever replaced."""


class ExportResult(Contract):
    """The files written under `out`, with their digests."""

    out: str
    files: dict[str, Digest]


class Problem(Contract):
    """One mistake in the input: where (a field path of the manifest, or a file, tensor, line) and what to do."""

    path: str
    message: str


class Report(Contract):
    """The answer to a task. Exactly one of `result` (of the task's kind) and `reason` is there.

    `left_out` is how many problems besides `problems` a note had no room for.
    """

    task: Digest
    kind: Literal["prepare", "evaluate", "select", "conclude", "export"]
    outcome: OutcomeName
    prepare: PrepareResult | None = None
    evaluate: EvaluateResult | None = None
    select: SelectResult | None = None
    conclude: ConcludeResult | None = None
    export: ExportResult | None = None
    reason: FailureReason | None = None
    message: str | None = None
    problems: list[Problem] = []
    left_out: int | None = None
    seconds: dict[str, float] = {}
    host: str | None = None
    trace: dict[str, Any] | None = None

    def line(self) -> str:
        """The report as the one line that goes out: without the items, which stay in the durable report."""
        short = self
        if self.evaluate is not None:
            short = self.model_copy(update={"evaluate": EvaluateResult(scores=self.evaluate.scores)})
        return short.model_dump_json(exclude_none=True, by_alias=True)


def _from_name(gene: Any) -> Any:
    """Reports used to hold a gene's name, "parameter/group/model" or "parameter/group", none of which has a slash."""
    if not isinstance(gene, str):
        return gene
    parameter, group, model = (*gene.split("/", 2), None, None)[:3]
    return {"parameter": parameter, "group": group, "model": model}


class StageFacts(Contract):
    """A stage of a run of several: its genes and, once it is over, its finalists."""

    name: str
    genes: list[GeneLabel]
    selected: SelectResult | None = None


class RunReport(Contract):
    """Everything `report.html` shows. `conclusion` is None while the search still runs. `genes` are those of the stage
    that has won or is searched; `stages` tells of each where there are several.

    `identity` is what makes two runs the same; it and the names of the baselines are the log's first line. Runs begun
    before baselines were pinned to a run have no names there."""

    run: str
    identity: dict[str, Any] = {}
    baseline_names: list[str] | None = None
    manifest: dict[str, Any]
    prepared: PrepareResult
    genes: list[Annotated[GeneLabel, BeforeValidator(_from_name)]]
    baselines: list[Candidate]
    candidates: list[Candidate]
    conclusion: ConcludeResult | None = None
    recipe: Recipe | None = None
    stages: list[StageFacts] | None = None


def fitness_of(objectives: list[Objective], scores: dict[str, float]) -> float:
    """Weighted mean of the scores, those where lower is better negated, so that higher is better.

    Raises:
        KeyError: an objective has no score.
    """
    total = sum(float(o.weight) for o in objectives)
    signed = (
        float(o.weight) * (-scores[o.name] if METRICS[o.metric].lower_is_better else scores[o.name]) for o in objectives
    )
    return sum(signed) / total
