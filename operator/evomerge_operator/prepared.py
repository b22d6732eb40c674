"""A prepared run: what is fixed before the first candidate, and what every task of it carries."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge_contract.base import GRID, GRID_DECIMALS
from evomerge_contract.manifest import BASE, EvoMerge
from evomerge_contract.recipe import DTypeName
from evomerge_contract.report import PrepareResult
from evomerge_contract.task import Baseline, DataDigests, PrepareTask, Source
from evomerge_operator.errors import InputError
from evomerge_operator.search import SearchAlgorithm, make_search
from evomerge_operator.space import Space, baselines, make_space

LONG_SECONDS = 86_400
"""The limit of tasks that pull and write whole models; a candidate's limit says nothing about them."""


@dataclass(frozen=True)
class Run:
    """What is fixed once a run is prepared."""

    manifest: EvoMerge
    prepared: PrepareResult
    space: Space
    search: SearchAlgorithm
    baselines: tuple[Baseline, ...]
    report_dir: str

    @property
    def stage(self) -> str:
        """The name of the stage that is searched."""
        return self.manifest.spec.stages[0].name

    @property
    def candidates(self) -> int:
        """The budget of the search, in candidates."""
        return self.manifest.spec.stages[0].search.candidates


def prepare_task(manifest: EvoMerge, report_dir: str, known: PrepareResult | None = None) -> PrepareTask:
    """The first task of a run; with what is `known` of an earlier one, a look whether all is as it was."""
    spec = manifest.spec
    return PrepareTask(
        sources=_sources(manifest, {s.name: s.digest for s in known.sources} if known else {}),
        data=data_digests(known) if known else None,
        storage=spec.storage,
        trust_remote_code=spec.trust_remote_code,
        threads=spec.evaluation.threads,
        timeout_seconds=LONG_SECONDS,
        report_dir=report_dir,
        objectives=spec.evaluation.objectives,
        methods=[s.parameter_space.method for s in spec.stages],
        groups=[s.parameter_space.groups for s in spec.stages],
        tokenizer_source=spec.tokenizer_source,
        config_source=spec.config_source,
    )


def make_run(manifest: EvoMerge, prepared: PrepareResult, report_dir: str) -> Run:
    """Fix a run's space, search and baselines.

    Raises:
        InputError: the space does not fit the models, or the search the space.
    """
    spec, stage = manifest.spec, manifest.spec.stages[0]
    field = "spec.stages[0].parameterSpace.groups"
    try:
        space = make_space(spec, stage.parameter_space, prepared.layout, _dtype(prepared))
        # A recipe in which every gene has a value of its own needs the most filters.
        space.decode(tuple(round(gene.low + k * GRID, GRID_DECIMALS) for k, gene in enumerate(space.genes)))
        field = "spec.stages[0].search"
        search = make_search(stage.search, space.genes, stage.name)
    except ValueError as error:
        raise InputError.at(manifest.metadata.name, field, str(error)) from error
    return Run(manifest, prepared, space, search, tuple(baselines(spec, space.dtype)), report_dir)


def identity(manifest: EvoMerge, prepared: PrepareResult) -> dict[str, object]:
    """What makes two runs the same: contents, evaluation, stages, vocabulary and config.

    URIs, parallelism and worker settings are never part of it. The order of the models counts: it is that of genes and
    baselines.
    """
    spec = manifest.spec
    evaluation = spec.evaluation.wire()
    for objective in evaluation["objectives"]:
        objective["jsonl"] = {k: v.digest for k, v in prepared.data[objective["name"]].items()}
    vocabulary = {} if spec.tokenizer_source is None else {"tokenizerSource": spec.tokenizer_source}
    config = {} if spec.config_source is None else {"configSource": spec.config_source}
    return (
        vocabulary
        | config
        | {
            "models": [{"name": s.name, "digest": s.digest} for s in prepared.sources],
            "evaluation": evaluation,
            "stages": [s.wire() for s in spec.stages],
            "trustRemoteCode": spec.trust_remote_code,
        }
    )


def common_fields(run: Run) -> dict[str, Any]:
    """The fields that every task after prepare shares."""
    spec = run.manifest.spec
    return {
        "sources": _sources(run.manifest, {s.name: s.digest for s in run.prepared.sources}),
        "storage": spec.storage,
        "trust_remote_code": spec.trust_remote_code,
        "threads": spec.evaluation.threads,
        "batch_size": spec.evaluation.batch_size,
        "timeout_seconds": spec.worker.timeout_seconds,
        "report_dir": run.report_dir,
    }


def _sources(manifest: EvoMerge, digests: Mapping[str, str]) -> list[Source]:
    spec = manifest.spec
    named = [(m.name, m) for m in spec.models] + ([(BASE, spec.base)] if spec.base else [])
    return [Source(name=n, uri=m.uri, adapter=m.adapter, license=m.license, digest=digests.get(n)) for n, m in named]


def data_digests(prepared: PrepareResult) -> dict[str, DataDigests]:
    """Every objective's splits by the digests of their content."""
    return {
        name: DataDigests(search=splits["search"].digest, select=splits["select"].digest, test=splits["test"].digest)
        for name, splits in prepared.data.items()
    }


def _dtype(prepared: PrepareResult) -> DTypeName:
    """Merges are written in the first source's dtype."""
    return prepared.sources[0].dtype
