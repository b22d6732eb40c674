"""Tasks, the worker's unit of work.

A task is one of five kinds: prepare, evaluate, select, conclude, export. A session takes tasks as NDJSON and prints
one line per report once that report is durable. The worker knows nothing of generations or genomes: what it should
copy into its report rides in `trace`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from evomerge_contract.base import Contract, Digest, digest_of
from evomerge_contract.candidate import Role
from evomerge_contract.manifest import Groups, Objective, SplitName, Storage, without_uris
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import ConcludeResult, SelectResult

_NOT_IDENTITY = {"storage", "report_dir", "timeout_seconds", "trace", "facts"}


class Source(Contract):
    """A model as a task names it: `name` is what recipes say; `digest` (of the content) pins it once prepared.

    An `adapter` is merged into the model that lies at `uri`.
    """

    name: str
    uri: str
    adapter: str | None = None
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
    `report_dir` is a `file://` or `s3://` folder; the report lies there as `<hex of the digest>.json`.
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
        for source in wire["sources"]:
            for key in {"license"} | ({"uri", "adapter"} if "digest" in source else set()):
                source.pop(key, None)
        if "data" in wire:
            wire["objectives"] = [without_uris(objective) for objective in wire["objectives"]]
        return digest_of(wire)


class PrepareTask(TaskBase):
    """Pin every source and data set, and find everything that keeps them from being merged and evaluated.

    `methods` are the merge methods that will be used, `tokenizer_source`, `chat_template` and `config_source` those of
    their recipes, `groups` how each stage groups the tensors, `flows` the models of each stage that searches the order
    of layers. `pool` are the models of stages still to come, those of the next one first, and `whole` those of them
    that are merged layer by layer; left out, all are. Never answered from an earlier report.
    Sources with a digest, and `data`, are what an earlier prepare found: content that is something else now is
    storage's fault (try again), not a mistake of the manifest.
    """

    kind: Literal["prepare"] = "prepare"
    objectives: list[Objective]
    methods: list[str]
    groups: list[Groups] = []
    flows: list[list[str]] = Field([], exclude_if=lambda flows: not flows)
    pool: list[str] | None = None
    whole: list[str] | None = None
    tokenizer_source: str | None = None
    chat_template: str | None = None
    config_source: str | None = None
    data: dict[str, DataDigests] | None = None


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
    role: Role
    recipe: Recipe


MASKS = 5


def mask_seeds(seed: int) -> list[int]:
    """The seeds whose masks a finalist of a random method is scored with before it is believed: `seed`, the run's own,
    and the four after it. Masks of different seeds have nothing in common, however near the seeds."""
    return [(seed + further) % 2**31 for further in range(MASKS)]


class SelectTask(TaskBase):
    """Rank a stage's finalists by their scores on select items.

    With `mask_seeds`, for finalists of a method that draws masks, each is scored once per seed and ranked by its mean:
    the search has seen the masks of `mask_seed` alone and chose what they happened to suit. `pool` are the models that
    they were merged from, scored beside them where a further stage is to have the better.
    """

    kind: Literal["select"] = "select"
    finalists: list[Finalist] = Field(min_length=1)
    pool: list[Baseline] | None = None
    mask_seed: int = 0
    mask_seeds: list[int] | None = Field(None, min_length=1)
    objectives: list[Objective]
    data: dict[str, DataDigests]


class ConcludeTask(TaskBase):
    """Score the best finalist and the baselines once on test items, with intervals.

    `selected` ranks the finalists: the first that can be scored on test items is the winner. A task without it, as
    version 0.1.0 made them, ranks them itself first, as a `SelectTask` does. The test items are scored with
    `mask_seed`, the one that is exported; `mask_seeds` has a meaning without `selected` alone. `stage` is that of the
    finalists, where a run has several; the other stages' winners are among the baselines.
    """

    kind: Literal["conclude"] = "conclude"
    finalists: list[Finalist] = Field(min_length=1)
    selected: SelectResult | None = None
    stage: str | None = None
    baselines: list[Baseline]
    mask_seed: int = 0
    mask_seeds: list[int] | None = Field(None, min_length=1)
    bootstrap_seed: int = 0
    objectives: list[Objective]
    data: dict[str, DataDigests]


class ExportTask(TaskBase):
    """Write the merged checkpoint, its recipe and its model card to the folder `out` (replaced as a whole).

    Without `card`, for the winner of a stage, there is no card. With `facts`, a local folder whose files in the
    order of their names are one gzip stream of a `RunReport`'s JSON, the search log, the report page and the recipe
    as a file go there too: a cluster has no other place for them. Once all is there, the exports in the folders
    `drop` go.
    """

    kind: Literal["export"] = "export"
    out: str
    recipe: Recipe
    mask_seed: int = 0
    card: "CardFacts | None" = None
    facts: str | None = None
    drop: list[str] | None = None
    recipe_text: str | None = None


Task = Annotated[PrepareTask | EvaluateTask | SelectTask | ConcludeTask | ExportTask, Field(discriminator="kind")]
task_adapter: TypeAdapter[Task] = TypeAdapter(Task)


class CardFacts(Contract):
    """What the model card says beyond the recipe. `earlier` are the recipes of the winners of stages that the model is
    made of, by the stages' names."""

    run: str
    method: str
    algorithm: str
    candidates: int
    seed: int
    objectives: list[Objective]
    data: dict[str, DataDigests]
    conclusion: ConcludeResult
    earlier: dict[str, Recipe] | None = None
