"""The manifest: the EvoMerge resource itself, so that one file serves `evomerge run` and `kubectl apply`.

It reads from top to bottom as a sentence: these models, judged this way, searched like this, the winner goes there.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from evomerge_contract.base import Contract, Name, Real, StageName

Uri = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=1024)]
Value = Annotated[
    str, StringConstraints(pattern=r"^(true|false|-?(0|[1-9][0-9]{0,5})(\.[0-9]{1,6})?)$", max_length=14, strict=True)
]
Algorithm = Literal["GA", "CMA-ES", "SepCMA-ES", "Random"]
MetricName = Literal["exact_match", "acc", "acc_norm", "perplexity"]
SplitName = Literal["search", "select", "test"]
SPLITS: tuple[SplitName, ...] = ("search", "select", "test")
BASE = "base"
"""The name under which recipes and reports speak of `spec.base`; no model of the pool may bear it."""


class Metadata(Contract):
    """The Kubernetes metadata a person writes; `name` also names the run's directory."""

    name: Name
    namespace: Name | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Base(Contract):
    """The common ancestor that task vectors are taken from. Not in the pool; scored for comparison."""

    uri: Uri
    license: str | None = Field(None, max_length=100)


class Model(Base):
    """A source of the pool: a Hugging Face checkpoint folder (safetensors) at `file://`, `s3://` or `hf://`."""

    name: Name


class S3(Contract):
    """How to reach an S3 server; what is left out comes from the ambient AWS settings."""

    endpoint: Uri | None = None
    region: str | None = Field(None, max_length=64)
    path_style: bool = False


class Storage(Contract):
    """Where models and data lie."""

    s3: S3 = S3()


class Jsonl(Contract):
    """The three disjoint splits of a data set, JSON Lines each.

    Items: `{"prompt", "answer"}` for exact_match (answer: text or a list of accepted texts),
    `{"prompt", "choices", "answer"}` for acc and acc_norm (answer: the index of the right choice),
    `{"text"}` for perplexity; each may name a `skill`.
    """

    search: Uri
    select: Uri
    test: Uri


class Objective(Contract):
    """One thing to be good at. The fitness is the weighted mean of all objectives (perplexity counts negatively)."""

    name: Name
    jsonl: Jsonl
    metric: MetricName
    weight: Real = "1"
    max_new_tokens: int = Field(32, ge=1, le=4096, description="exact_match: tokens generated per item.")
    extract: str | None = Field(
        None, max_length=500, description="exact_match: a regular expression; its last match is the answer."
    )
    chat_template: bool = Field(True, description="Wrap prompts in the model's chat template where it has one.")


class Evaluation(Contract):
    """What candidates are judged by. Threads and batch size are part of it because they change sums."""

    objectives: list[Objective] = Field(min_length=1, max_length=8)
    batch_size: int = Field(32, ge=1, le=4096)
    threads: int = Field(1, ge=1, le=256, description="CPU threads of a worker.")


class Pattern(Contract):
    """Tensors whose name a regular expression matches somewhere; the first pattern that matches wins."""

    name: Name
    regex: str = Field(min_length=1, max_length=500)


class Groups(Contract):
    """How tensors are grouped; every group has parameters of its own. Exactly one way is to be given.

    `layers: 1` is one group, the whole model. `layers: N` cuts the layers into N blocks and `everyLayer` gives each
    layer a group; in both, the embeddings are one group more and the final norm with the head another.
    `components` gives attention, mlp, norms and embeddings (with the head); `patterns` one group each,
    and one for the rest.
    """

    layers: int | None = Field(None, ge=1, le=1024)
    every_layer: Literal[True] | None = None
    components: Literal[True] | None = None
    patterns: list[Pattern] | None = Field(None, min_length=1, max_length=64)


class Parameter(Contract):
    """A parameter of the merge method: searched between `min` and `max`, or fixed at `value`.

    `sumsToOne` (per-model parameters): each model but the last has its gene, the last takes what is left of 1,
    and where the sum leaves no room within the bounds the later models give way.
    """

    min: Real | None = None
    max: Real | None = None
    start: Real | None = Field(None, description="The first candidate's value; the middle when left out.")
    sums_to_one: bool = False
    value: Value | None = None


class ParameterSpace(Contract):
    """A merge in parameter space (PS in arXiv 2403.13187): one recipe per genome."""

    method: str = Field(max_length=40)
    groups: Groups = Groups(layers=1)
    parameters: dict[str, Parameter] = Field(min_length=1, max_length=8)


class Search(Contract):
    """How genomes are chosen. All randomness comes from (seed, stage, index)."""

    algorithm: Algorithm = "GA"
    candidates: int = Field(ge=1, le=100_000)
    seed: int = Field(0, ge=0, le=2**31 - 1)
    population: int | None = Field(None, ge=4, le=4096, description="Left out: the algorithm's own rule.")
    lag: int = Field(
        16, ge=1, le=1024, description="Genome k depends on outcomes up to index k - lag; parallelism beyond it idles."
    )


class Stage(Contract):
    """A space and a search in it."""

    name: StageName
    parameter_space: ParameterSpace
    search: Search


class Budget(Contract):
    """What a run may cost."""

    failures: int = Field(20, ge=0, le=100_000, description="More failed candidates than this end the search.")


class Worker(Contract):
    """How workers run; never part of a run's identity."""

    timeout_seconds: int = Field(3600, ge=1, le=604_800, description="A candidate that takes longer has failed.")


class EvoMergeSpec(Contract):
    """What to merge, how to judge it and how to search."""

    models: list[Model] = Field(min_length=2, max_length=32)
    base: Base | None = None
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the models. Off unless set.")
    storage: Storage = Storage()
    evaluation: Evaluation
    stages: list[Stage] = Field(min_length=1, max_length=1)
    parallelism: int = Field(1, ge=1, le=1024)
    budget: Budget = Budget()
    worker: Worker = Worker()


class EvoMerge(Contract):
    """The resource `evomerge.dev/v1alpha1 EvoMerge`."""

    api_version: Literal["evomerge.dev/v1alpha1"]
    kind: Literal["EvoMerge"]
    metadata: Metadata
    spec: EvoMergeSpec
