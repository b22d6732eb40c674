"""A run: what is fixed once it is prepared, and its stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from evomerge_contract.manifest import BASE, Base, EvoMerge, Stage
from evomerge_contract.recipe import DTypeName
from evomerge_contract.report import PrepareResult, SelectResult
from evomerge_contract.task import Baseline, DataDigests, PrepareTask, Source
from evomerge_operator.errors import InputError
from evomerge_operator.plan.progress import Progress
from evomerge_operator.rules import RESERVED_STAGE
from evomerge_operator.search import Gene
from evomerge_operator.spaces import baselines, default_baselines

BASELINES = RESERVED_STAGE
"""The name of the baselines' own sequence."""
_Named = TypeVar("_Named", bound=Base)
LONG_SECONDS = 86_400
"""The limit of tasks that pull and write whole models; a candidate's limit says nothing about them."""


@dataclass(frozen=True, order=True)
class Key:
    """Which candidate: a stage (or the baselines) and an index in it."""

    stage: str
    index: int


@dataclass
class StageRun:
    """A stage of a run: its space over a pool of models, its search, and how far that is."""

    stage: Stage
    prepared: PrepareResult
    """What was found of its models, the winners of earlier stages among them."""
    pool: tuple[str, ...]
    """The models that it merges, by name."""
    genes: tuple[Gene, ...]
    version: str
    """Of the search algorithm, as candidates hold it."""
    population: int
    """The generation of index k is k // population."""
    progress: Progress = field(default_factory=Progress)
    selected: SelectResult | None = None
    """Its finalists, ranked on select items, once they are."""
    winner: Source | None = None
    """A model of the stages that follow, once it is written."""

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.stage.name

    @property
    def candidates(self) -> int:
        """The budget of the search, in candidates."""
        return self.stage.search.candidates

    @property
    def complete(self) -> bool:
        """Whether every candidate is finished."""
        return self.progress.leading == self.candidates


class Common(NamedTuple):
    """What the stages of a run have in common, as far as tasks need it."""

    manifest: EvoMerge
    report_dir: str
    baselines: tuple[Baseline, ...]
    winners: tuple[Source, ...]
    """Of the stages that are over."""


@dataclass
class Run:
    """A prepared run."""

    manifest: EvoMerge
    prepared: PrepareResult
    report_dir: str
    baselines: tuple[Baseline, ...]
    pinned: tuple[str, ...] | None
    """The names of the baselines as the run was begun with; None: it was begun before they were pinned.

    Such a run is also concluded in its own way: by one task, which ranks the finalists itself."""
    stages: list[StageRun]
    """Those that were begun, in the manifest's order."""
    compared: Progress = field(default_factory=Progress)
    """Of the baselines."""

    @property
    def stage(self) -> StageRun:
        """The stage that is searched now, or was last."""
        return self.stages[-1]

    @property
    def common(self) -> Common:
        """What its stages have in common."""
        winners = tuple(stage.winner for stage in self.stages if stage.winner is not None)
        return Common(self.manifest, self.report_dir, self.baselines, winners)

    def progress(self, stage: str) -> Progress:
        """The progress of a stage, or of the baselines.

        Raises:
            KeyError: there is no such stage.
        """
        if stage == BASELINES:
            return self.compared
        return {one.name: one.progress for one in self.stages}[stage]

    def has(self, stage: str) -> bool:
        """Whether candidates of this name belong to the run."""
        return stage == BASELINES or any(one.name == stage for one in self.stages)

    @property
    def searched(self) -> bool:
        """Whether every candidate of the current stage and every baseline is finished."""
        return self.stage.complete and self.compared.leading == len(self.baselines)

    def best_source(self) -> float | None:
        """The best fitness of a source alone."""
        found = [c.fitness for c in self.compared.finished.values() if self.baselines[c.index].role == "source"]
        return max((fitness for fitness in found if fitness is not None), default=None)


def commits(prepared: PrepareResult) -> dict[str, str]:
    """The places at the hub that named no commit, each with the one that it had when the run was prepared."""
    return {asked: found for source in prepared.sources for asked, found in (source.commits or {}).items()}


def at_commits(manifest: EvoMerge, commits: Mapping[str, str]) -> EvoMerge:
    """The manifest with the commits that its models at the hub have in this run."""

    def placed(model: _Named) -> _Named:
        places = {"uri": model.uri, "adapter": model.adapter}
        return model.model_copy(update={key: commits.get(uri, uri) for key, uri in places.items() if uri is not None})

    spec = manifest.spec
    update = {"models": [placed(model) for model in spec.models], "base": spec.base and placed(spec.base)}
    return manifest.model_copy(update={"spec": spec.model_copy(update=update)})


def make_run(manifest: EvoMerge, prepared: PrepareResult, report_dir: str, pinned: Sequence[str] | None) -> Run:
    """A run before its first stage.

    Raises:
        InputError: it is pinned to a baseline that this version does not know.
    """
    manifest = at_commits(manifest, commits(prepared))
    names = None if pinned is None else tuple(pinned)
    try:
        known = tuple(baselines(manifest.spec, dtype_of(prepared), names))
    except ValueError as error:
        message = f"another version has begun this run: {error}; go on with that version"
        raise InputError.at(manifest.metadata.name, "baselines", message) from error
    return Run(manifest, prepared, report_dir, known, names, [])


def default_names(manifest: EvoMerge, prepared: PrepareResult) -> tuple[str, ...]:
    """The baselines that a run which begins now is pinned to; models of different depth cannot be merged as wholes."""
    names, flow = default_baselines(manifest.spec), prepared.layout.flow
    depths = set() if flow is None else {flow.layers.get(s.name) for s in prepared.sources if s.name != BASE}
    alone = [source.name for source in prepared.sources]
    return tuple(name for name in names if name in alone or len(depths) < 2)


def prepare_task(
    manifest: EvoMerge, report_dir: str, known: PrepareResult | None = None, winners: Sequence[Source] = ()
) -> PrepareTask:
    """The first task of a run, and with the `winners` of stages that are over that of the next stage.

    With what is `known` of an earlier one, it is a look whether all is as it was.
    """
    manifest = at_commits(manifest, commits(known)) if known else manifest
    spec = manifest.spec
    numbers = range(len(winners), len(spec.stages))
    ahead = [(spec.stages[number], spec.pool(number)) for number in numbers]
    there = [model.name for model in spec.models] + [winner.name for winner in winners]
    pool = _there(there, [models for _, models in ahead])
    whole = _there(there, [models for stage, models in ahead if stage.parameter_space is not None])
    return PrepareTask(
        sources=[*sources_of(manifest, {s.name: s.digest for s in known.sources} if known else {}), *winners],
        data=data_digests(known) if known else None,
        storage=spec.storage,
        trust_remote_code=spec.trust_remote_code,
        threads=spec.evaluation.threads,
        timeout_seconds=LONG_SECONDS,
        report_dir=report_dir,
        objectives=spec.evaluation.objectives,
        methods=[s.parameter_space.method for s in spec.stages if s.parameter_space is not None],
        groups=[s.space.groups for s in spec.stages],
        flows=[list(models) for stage, models in ahead if stage.data_flow_space is not None],
        pool=None if pool == there else pool,
        whole=None if whole == pool else whole,
        tokenizer_source=spec.tokenizer_source,
        chat_template=spec.chat_template,
        config_source=spec.config_source,
    )


def _there(there: Sequence[str], pools: Sequence[Sequence[str]]) -> list[str]:
    """The models of stages that are there already, in the order in which stages name them."""
    return [name for name in dict.fromkeys(name for pool in pools for name in pool) if name in there]


def identity(manifest: EvoMerge, prepared: PrepareResult) -> dict[str, object]:
    """What makes two runs the same: contents, evaluation, stages, vocabulary, template and config.

    URIs, parallelism and worker settings are never part of it. The order of the models counts: it is that of genes and
    baselines.
    """
    spec = manifest.spec
    objectives = [
        objective.with_uris({split: found.digest for split, found in prepared.data[objective.name].items()})
        for objective in spec.evaluation.objectives
    ]
    chosen = {
        "tokenizerSource": spec.tokenizer_source,
        "chatTemplate": spec.chat_template,
        "configSource": spec.config_source,
    }
    return {key: value for key, value in chosen.items() if value is not None} | {
        "models": [{"name": s.name, "digest": s.digest} for s in prepared.sources],
        "evaluation": spec.evaluation.model_copy(update={"objectives": objectives}).wire(),
        "stages": [s.model_copy(update={"worker": None}).wire() for s in spec.stages],
        "trustRemoteCode": spec.trust_remote_code,
    }


def sources_of(manifest: EvoMerge, digests: Mapping[str, str]) -> list[Source]:
    """The models of a manifest as tasks name them, the base included."""
    spec = manifest.spec
    named = [(m.name, m) for m in spec.models] + ([(BASE, spec.base)] if spec.base else [])
    return [Source(name=n, uri=m.uri, adapter=m.adapter, license=m.license, digest=digests.get(n)) for n, m in named]


def data_digests(prepared: PrepareResult) -> dict[str, DataDigests]:
    """Every objective's splits by the digests of their content."""
    return {
        name: DataDigests(search=splits["search"].digest, select=splits["select"].digest, test=splits["test"].digest)
        for name, splits in prepared.data.items()
    }


def dtype_of(prepared: PrepareResult) -> DTypeName:
    """Merges are written in the first source's dtype."""
    return prepared.sources[0].dtype
