"""The manifest: the EvoMerge resource itself, so that one file serves `evomerge run` and `kubectl apply`.

It reads from top to bottom as a sentence: these models, judged this way, searched like this, the winner goes there.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, StringConstraints

from evomerge_contract.base import Contract, Name, Real, StageName
from evomerge_contract.metrics import EVALUATORS, EvaluatorName, MetricName
from evomerge_contract.resource import ApiVersion, EvoMergeKind

Uri = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=1024)]
Value = Annotated[
    str, StringConstraints(pattern=r"^(true|false|-?(0|[1-9][0-9]{0,5})(\.[0-9]{1,6})?)$", max_length=14, strict=True)
]
ObjectName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)
]  # of another Kubernetes object
Quantity = Annotated[
    str, StringConstraints(pattern=r"^[0-9]{1,12}(\.[0-9]{1,6})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$", max_length=24)
]
Duration = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,5}[smhd]$", max_length=7)]
"""A time span with one unit: "90s", "30m", "72h", "7d"."""
Algorithm = Literal["GA", "CMA-ES", "SepCMA-ES", "Random"]
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

    uri: Uri = Field(
        description="s3://bucket/path or hf://org/name, perhaps with @commit or @branch: without a commit it is "
        "pinned to the one that it has when the run is prepared. On one machine a folder too.",
    )
    adapter: Uri | None = Field(
        None,
        description="The folder of a LoRA adapter as PEFT writes it, at a place as for uri; merged into the model.",
    )
    license: str | None = Field(None, max_length=100, description="Goes into the winner's model card.")


class Model(Base):
    """A source of the pool: a Hugging Face checkpoint folder (safetensors) at `file://`, `s3://` or `hf://`."""

    name: Name = Field(description="What recipes and reports call it.")


class S3(Contract):
    """How to reach an S3 server; what is left out comes from the ambient AWS settings."""

    endpoint: Uri | None = Field(None, description="https://… or http://…; left out: AWS.")
    region: str | None = Field(None, max_length=64, description="As AWS names them: eu-central-1.")
    path_style: bool | None = Field(
        None,
        description="true: https://endpoint/bucket; false: https://bucket.endpoint. Left out: the first where an "
        "endpoint is given, the second for AWS.",
    )
    secret_name: ObjectName | None = Field(
        None,
        description="Cluster: a Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and perhaps AWS_SESSION_TOKEN. "
        "Left out: the pod's own identity. Ignored on one machine.",
    )
    ca_config_map: ObjectName | None = Field(
        None,
        description="Cluster: a ConfigMap whose ca.crt signs the endpoint's certificate. One machine: AWS_CA_BUNDLE.",
    )


class HuggingFace(Contract):
    """How to reach the Hugging Face Hub."""

    secret_name: ObjectName | None = Field(
        None, description="Cluster: a Secret whose key token opens gated models. On one machine: HF_TOKEN."
    )


class Storage(Contract):
    """Where models and data lie."""

    s3: S3 = S3()
    hugging_face: HuggingFace = HuggingFace()


class Evaluator(Contract):
    """What every evaluator has: three disjoint splits, a file each, and perhaps settings of its own."""

    search: Uri = Field(description="Gives the fitness.")
    select: Uri = Field(description="Chooses the winner among the finalists.")
    test: Uri = Field(description="Scored once, at the very end.")

    @property
    def uris(self) -> dict[SplitName, str]:
        """Where the items of each split lie."""
        return {"search": self.search, "select": self.select, "test": self.test}


class Jsonl(Evaluator):
    """The three disjoint splits of a data set, JSON Lines each.

    Items: `{"prompt", "answer"}` for exact_match (answer: text or a list of accepted texts),
    `{"prompt", "choices", "answer"}` for acc and acc_norm (answer: the index of the right choice),
    `{"text"}` for perplexity; each may name a `skill`.
    """


class Objective(Contract):
    """One thing to be good at. The fitness is the weighted mean of all objectives (perplexity counts negatively)."""

    name: Name = Field(description="What scores are reported under.")
    jsonl: Jsonl
    metric: MetricName = Field(description="How answers are scored.")
    weight: Real = Field("1", description="Its share of the fitness, above 0.")
    max_new_tokens: int = Field(32, ge=1, le=4096, description="exact_match: tokens generated per item.")
    extract: str | None = Field(
        None, max_length=500, description="exact_match: a regular expression; its last match is the answer."
    )
    chat_template: bool = Field(True, description="Wrap prompts in the model's chat template where it has one.")

    @property
    def evaluators(self) -> dict[EvaluatorName, Evaluator]:
        """The evaluators that are given, by their fields; in a valid manifest exactly one."""
        return {name: given for name in EVALUATORS if (given := getattr(self, name)) is not None}

    @property
    def evaluator_name(self) -> EvaluatorName:
        """The evaluator's field."""
        return next(iter(self.evaluators))

    @property
    def evaluator(self) -> Evaluator:
        """The one evaluator."""
        return self.evaluators[self.evaluator_name]

    def with_uris(self, uris: Mapping[SplitName, str]) -> Self:
        """The same objective with its items at other places."""
        update: dict[str, str] = {split: uris[split] for split in SPLITS}
        return self.model_copy(update={self.evaluator_name: self.evaluator.model_copy(update=update)})


def without_uris(objective: dict[str, Any]) -> dict[str, Any]:
    """An objective's wire form for a digest, where items count by their content, not by where they lie.

    Of an evaluator its settings are left. jsonl, which has none, leaves no key: digests are older than the others.
    """
    kept = dict(objective)
    for name in EVALUATORS:
        if name in kept:
            kept[name] = {key: value for key, value in kept[name].items() if key not in SPLITS}
    if kept.get("jsonl") == {}:
        del kept["jsonl"]
    return kept


class Evaluation(Contract):
    """What candidates are judged by. Threads and batch size are part of it because they change sums."""

    objectives: list[Objective] = Field(min_length=1, max_length=8, description="What to be good at.")
    batch_size: int = Field(32, ge=1, le=4096, description="Items scored at once.")
    threads: int = Field(1, ge=1, le=256, description="CPU threads of a worker.")


class Pattern(Contract):
    """Tensors whose name a regular expression matches somewhere; the first pattern that matches wins."""

    name: Name = Field(description="What the group is called.")
    regex: str = Field(min_length=1, max_length=500, description="Found anywhere in a tensor's name.")


class Groups(Contract):
    """How tensors are grouped; every group has parameters of its own. Exactly one way is to be given.

    `layers: 1` is one group, the whole model. `layers: N` cuts the layers into N blocks and `everyLayer` gives each
    layer a group; in both, the embeddings are one group more and the final norm with the head another.
    `components` gives attention, mlp, norms and embeddings (with the head); `patterns` one group each,
    and one for the rest.
    """

    layers: int | None = Field(None, ge=1, le=1024, description="So many blocks of layers; 1: the whole model.")
    every_layer: Literal[True] | None = Field(None, description="One group a layer.")
    components: Literal[True] | None = Field(None, description="Attention, mlp, norms, embeddings.")
    patterns: list[Pattern] | None = Field(None, min_length=1, max_length=64, description="Groups by tensor names.")


class Parameter(Contract):
    """A parameter of the merge method: searched between `min` and `max`, or fixed at `value`.

    `sumsToOne` (per-model parameters): each model but the last has its gene, the last takes what is left of 1,
    and where the sum leaves no room within the bounds the later models give way.
    """

    min: Real | None = Field(None, description="The smallest value tried.")
    max: Real | None = Field(None, description="The largest value tried.")
    start: Real | None = Field(None, description="The first candidate's value; the middle when left out.")
    sums_to_one: bool = Field(False, description="The models' values add up to 1 in each group.")
    value: Value | None = Field(None, description="Fixed: a number, or true or false, in quotes.")


class ParameterSpace(Contract):
    """A merge in parameter space (PS in arXiv 2403.13187): one recipe per genome."""

    blamed_field: ClassVar[str] = "parameterSpace.groups"
    """What to mend where the space does not suit the models."""

    models: list[Name] | None = Field(
        None,
        min_length=2,
        max_length=43,
        description="Which models are merged, winners of earlier stages by the stage's name. Left out: all.",
    )
    method: str = Field(max_length=40, description="A merge method by its published name.")
    groups: Groups = Groups(layers=1)
    parameters: dict[str, Parameter] = Field(
        min_length=1, max_length=8, description="The method's, by mergekit's names."
    )


SMALLEST_SCALE, LARGEST_SCALE = 0.05, 8.0
"""Of a hop. A scale of 0 cannot be folded into weights; packed genomes hold numbers up to 8.388607."""
SLOTS = 1024
"""The most that a data-flow space may have, however many layers the models turn out to have."""
FLOW_GENES = 32_768
"""The most genes of a data-flow space: 128 KiB a candidate. Scales per pair of 180 layers are as many."""


class Scales(Contract):
    """Factors on the input of a layer, one a hop, folded into weights: the winner is an ordinary checkpoint.

    Every scale is a gene. The search starts with all of them at 1, and tries values near 1 first.
    """

    per: Literal["Slot", "Pair"] = Field(
        "Slot",
        description="What has a scale of its own. Slot: each slot, and the hop into the closing layer. Pair: each "
        "ordered pair of layers of the models (the paper's matrix W), as many as the square of their number.",
    )
    min: Real = Field("0.5", description="The smallest scale: at least 0.05, at most 1.")
    max: Real = Field("1.5", description="The largest scale: at least 1, at most 8.")


class Depth(Contract):
    """How many layers a candidate may have, with the donor's first and last.

    A genome beyond the bounds is repaired. Where slots are real genes (CMA-ES, SepCMA-ES), those with the lowest values
    go out first and those with the highest come in first. Where they are binary (GA, Random), slots drawn by the
    candidate's seed go out or come in before the candidate is logged.
    """

    min: int = Field(2, ge=2, le=SLOTS + 2, description="The fewest layers.")
    max: int = Field(SLOTS + 2, ge=2, le=SLOTS + 2, description="The most layers: bounds memory and time.")


class DataFlowSpace(Contract):
    """A path through the layers of the models (DFS in arXiv 2403.13187): which layers, in which order, how often.

    All layers of all models in order, `repeats` times one after the other, are the slots of the path. A gene a slot
    says whether its layer is in. The first model is the donor: embeddings, final norm, head, config and tokenizer are
    its own, its first layer opens the path and its last layer closes it; these two are no genes. The search starts at
    the donor's own path and changes about two slots of it at first.
    """

    blamed_field: ClassVar[str] = "dataFlowSpace"
    """What to mend where the space does not suit the models."""

    models: list[Name] | None = Field(
        None,
        min_length=1,
        max_length=43,
        description="The models in the order of their layers, the first the donor; winners of earlier stages by the "
        "stage's name. Left out: all.",
    )
    repeats: int = Field(1, ge=1, le=8, description="How often the sequence of all layers is repeated.")
    scales: Scales | None = Field(None, description="Left out: a layer's input is never scaled.")
    layers: Depth = Field(Depth(), description="How deep a candidate may be. Left out: as deep as there are slots.")

    @property
    def method(self) -> str:
        """The merge method of its recipes."""
        return "passthrough"

    @property
    def groups(self) -> Groups:
        """Tensors are not grouped: a layer goes in whole."""
        return Groups(layers=1)

    @property
    def parameters(self) -> dict[str, Parameter]:
        """What its genes say, with the values that occur."""
        scales = {} if self.scales is None else {"scale": Parameter(min=self.scales.min, max=self.scales.max)}
        return {"slot": Parameter(min="0", max="1")} | scales


StageSpace = ParameterSpace | DataFlowSpace
"""What a stage searches. `method`, `groups` and `parameters` say of each kind what its recipes have."""


class Search(Contract):
    """How genomes are chosen. All randomness comes from (seed, stage, index)."""

    algorithm: Algorithm = Field("GA", description="How the next genome is chosen.")
    candidates: int = Field(ge=1, le=100_000, description="How many are tried.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="The same seed gives the same search.")
    population: int | None = Field(None, ge=4, le=4096, description="Left out: the algorithm's own rule.")
    lag: int = Field(
        16, ge=1, le=1024, description="Genome k depends on outcomes up to index k - lag; parallelism beyond it idles."
    )


class Resources(Contract):
    """What a worker's container asks for and is held to, as in a pod."""

    limits: dict[str, Quantity] = Field({}, max_length=16, description='The most, as in nvidia.com/gpu: "1".')
    requests: dict[str, Quantity] = Field({}, max_length=16, description="What the scheduler sets aside.")


class StageWorker(Contract):
    """How a stage's workers differ: its candidates may be larger models. Never part of a run's identity."""

    timeout_seconds: int | None = Field(None, ge=1, le=604_800, description="In place of spec.worker.timeoutSeconds.")
    resources: Resources | None = Field(None, description="In place of spec.worker.resources.")


class Stage(Contract):
    """A space, exactly one of parameterSpace and dataFlowSpace, and a search in it."""

    name: StageName = Field(
        description="Part of its candidates' names; the winner has it too, as a model of the stages that follow."
    )
    parameter_space: ParameterSpace | None = None
    data_flow_space: DataFlowSpace | None = None
    search: Search
    on_no_gain: Literal["Continue", "Stop"] | None = Field(
        None,
        description="What follows where no finalist is better on select items than the best of the models it was "
        "merged from: Continue (with that model in the winner's place; so it is when left out) or Stop (the run ends "
        "with the stages it has).",
    )
    worker: StageWorker | None = Field(None, description="What this stage's workers need beside spec.worker.")

    @property
    def spaces(self) -> dict[str, StageSpace]:
        """The spaces that are given, by their fields; in a valid manifest exactly one."""
        given = {"parameterSpace": self.parameter_space, "dataFlowSpace": self.data_flow_space}
        return {name: space for name, space in given.items() if space is not None}

    @property
    def space(self) -> StageSpace:
        """The one space."""
        return next(iter(self.spaces.values()))


class Budget(Contract):
    """What a run may cost."""

    failures: int = Field(20, ge=0, le=100_000, description="More failed candidates than this end the search.")
    disruptions: int = Field(
        500,
        ge=0,
        le=1_000_000,
        description="Cluster: more attempts lost (pod evicted, preempted, deleted, node gone) than this end it.",
    )
    deadline: Duration | None = Field(
        None, description="Cluster: a search that works longer than this has failed. Stands still while suspended."
    )


class PersistentVolumeClaim(Contract):
    """A claim in the EvoMerge's namespace."""

    claim_name: ObjectName = Field(description="Its access mode decides whether workers share it.")


class EmptyDir(Contract):
    """Space on the node that lives as long as the pod."""

    size_limit: Quantity | None = Field(None, description="A pod that fills more is evicted.")


class HostPath(Contract):
    """A folder of the node, for namespaces that allow it; each namespace gets a subfolder of its own."""

    path: Annotated[str, StringConstraints(pattern=r"^/[^\x00-\x1f\x7f:]+$", max_length=512)] = Field(
        description="An absolute path on the node."
    )


class Cache(Contract):
    """Where weights are kept between pods. At most one way is to be given; none: an emptyDir without a limit."""

    persistent_volume_claim: PersistentVolumeClaim | None = None
    empty_dir: EmptyDir | None = None
    host_path: HostPath | None = None


class PodMetadata(Contract):
    """What a pod's metadata may be given."""

    labels: dict[str, Annotated[str, StringConstraints(max_length=63)]] = Field(
        {}, max_length=64, description="Go onto the Jobs too: a Kueue queue name, for one."
    )
    annotations: dict[str, Annotated[str, StringConstraints(max_length=65_536)]] = Field(
        {}, max_length=64, description="For sidecars, admission webhooks and the like."
    )


class PodTemplate(Contract):
    """A PodTemplateSpec merged over the operator's own; the container is named worker."""

    metadata: PodMetadata = PodMetadata()
    spec: dict[str, Any] = Field({}, description="Any field of a PodSpec; lists of named things are merged by name.")


class Worker(Contract):
    """How workers run; never part of a run's identity. All but the timeout is for clusters."""

    timeout_seconds: int = Field(3600, ge=1, le=604_800, description="A candidate that takes longer has failed.")
    start_seconds: int = Field(
        900, ge=30, le=604_800, description="A pod that has not started after this gives its slot back."
    )
    image: str | None = Field(None, min_length=1, max_length=500, description="Left out: the operator's default.")
    resources: Resources = Resources()
    candidates_per_pod: int = Field(1, ge=1, le=16, description="Candidates that share a pod's start and imports.")
    cache: Cache = Cache()
    pod_template: PodTemplate = PodTemplate()


class Export(Contract):
    """Where a cluster leaves the winner: its checkpoint, recipe, model card, log and report."""

    uri: Annotated[str, StringConstraints(pattern=r"^s3://[^/\x00-\x1f\x7f]+/[^\x00-\x1f\x7f]+$", max_length=1024)] = (
        Field(description="s3://bucket/folder: empty, or an earlier export, which is replaced.")
    )


class EvoMergeSpec(Contract):
    """What to merge, how to judge it and how to search."""

    models: list[Model] = Field(min_length=2, max_length=32, description="The pool that is merged.")
    base: Base | None = None
    tokenizer_source: Name | None = Field(
        None,
        description="Whose tokens the winner has where the models' vocabularies differ: union, base (spec.base's), or "
        "the name of a model. Left out, all must have the same tokens.",
    )
    chat_template: Annotated[str, StringConstraints(max_length=32_768)] | None = Field(
        None,
        description="The winner's chat template, and the candidates': auto (the one most models have), a name as in "
        "mergekit (chatml, llama3, mistral, alpaca, exaone) or a Jinja template. Left out: the first model's own.",
    )
    config_source: Name | None = Field(
        None,
        description="Whose config.json merges have where the models' differ in what they compute, such as the rope "
        "base, the window or an epsilon: base (spec.base's), or the name of a model. Left out, all must be the same.",
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the models. Off unless set.")
    storage: Storage = Storage()
    evaluation: Evaluation
    stages: list[Stage] = Field(min_length=1, max_length=12, description="The searches, one after the other.")
    parallelism: int = Field(1, ge=1, le=1024, description="Worker pods, or on one machine sessions, side by side.")
    budget: Budget = Budget()
    worker: Worker = Worker()
    export: Export | None = Field(
        None, description="Needed on a cluster; on one machine the winner is in the run's folder."
    )
    suspend: bool = Field(False, description="Cluster: end running workers without a trace and start none until unset.")
    ttl_seconds_after_finished: int | None = Field(
        None,
        ge=0,
        le=31_536_000,
        description="Cluster: the EvoMerge is deleted so long after its end. The export stays.",
    )

    def worker_of(self, stage: Stage) -> Worker:
        """How the workers of a stage run."""
        own = {name: value for name, value in stage.worker or () if value is not None}
        return self.worker.model_copy(update=own)

    def pool(self, number: int) -> tuple[str, ...]:
        """The names of the models that a stage merges: those that it names, or all, and the winners of the stages
        before it."""
        named = self.stages[number].space.models
        return tuple(named or [*(m.name for m in self.models), *(stage.name for stage in self.stages[:number])])


class EvoMerge(Contract):
    """The resource `evomerge.dev/v1alpha1 EvoMerge`."""

    api_version: ApiVersion
    kind: EvoMergeKind
    metadata: Metadata
    spec: EvoMergeSpec
