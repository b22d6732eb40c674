"""Tasks, the worker's unit of work.

A task is one of four kinds: prepare, evaluate, conclude, export. A session takes tasks as NDJSON and prints one line
per report once that report is durable. The worker knows nothing of generations or genomes: what it should copy into
its report rides in `trace`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from evomerge_contract.base import Contract, Digest, digest_of
from evomerge_contract.manifest import Groups, Objective, SplitName, Storage
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import ConcludeResult

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
            for objective in wire["objectives"]:
                del objective["jsonl"]
        return digest_of(wire)


class PrepareTask(TaskBase):
    """Pin every source and data set, and find everything that keeps them from being merged and evaluated.

    `methods` are the merge methods that will be used, `tokenizer_source` and `config_source` those of their recipes,
    `groups` how each stage groups the tensors. Never answered from an earlier report.
    Sources with a digest, and `data`, are what an earlier prepare found: content that is something else now is
    storage's fault (try again), not a mistake of the manifest.
    """

    kind: Literal["prepare"] = "prepare"
    objectives: list[Objective]
    methods: list[str]
    groups: list[Groups] = []
    tokenizer_source: str | None = None
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
    role: Literal["source", "average", "default", "base"]
    recipe: Recipe


MASKS = 5


def mask_seeds(seed: int) -> list[int]:
    """The seeds whose masks a finalist of a random method is scored with before it is believed: `seed`, the run's own,
    and the four after it. Masks of different seeds have nothing in common, however near the seeds."""
    return [(seed + further) % 2**31 for further in range(MASKS)]


class ConcludeTask(TaskBase):
    """Score finalists on select items, the best of them and the baselines once on test items, with intervals.

    With `mask_seeds`, for finalists of a method that draws masks, each is scored on select items once per seed, and
    the best mean wins: the search has seen the masks of `mask_seed` alone and chose what they happened to suit. The
    test items are scored with `mask_seed`, the one that is exported.
    """

    kind: Literal["conclude"] = "conclude"
    finalists: list[Finalist] = Field(min_length=1)
    baselines: list[Baseline]
    mask_seed: int = 0
    mask_seeds: list[int] | None = Field(None, min_length=1)
    bootstrap_seed: int = 0
    objectives: list[Objective]
    data: dict[str, DataDigests]


class ExportTask(TaskBase):
    """Write the merged checkpoint, its recipe and its model card to the folder `out` (replaced as a whole).

    With `facts`, a local folder whose files in the order of their names are one gzip stream of a `RunReport`'s JSON,
    the search log, the report page and the recipe as a file go there too: a cluster has no other place for them.
    """

    kind: Literal["export"] = "export"
    out: str
    recipe: Recipe
    mask_seed: int = 0
    card: "CardFacts"
    facts: str | None = None
    recipe_text: str | None = None


Task = Annotated[PrepareTask | EvaluateTask | ConcludeTask | ExportTask, Field(discriminator="kind")]
task_adapter: TypeAdapter[Task] = TypeAdapter(Task)


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
