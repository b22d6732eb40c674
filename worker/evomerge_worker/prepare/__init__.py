"""The prepare task: pin every source and data set, and find all that keeps them from being merged and evaluated.

A mistake costs one prepare task here, instead of every candidate of a search.
"""

from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from evomerge_contract.grouping import misplaced
from evomerge_contract.manifest import BASE, SplitName
from evomerge_contract.methods import METHODS, without_base
from evomerge_contract.recipe import Recipe, RecipeModel
from evomerge_contract.report import Layout, PreparedSource, PreparedSplit, PrepareResult, Problem
from evomerge_contract.task import PrepareTask, Source
from evomerge_worker.errors import WorkerError
from evomerge_worker.merge.chat_template import template_mistake
from evomerge_worker.merge.fit import other_depth
from evomerge_worker.merge.names import Names
from evomerge_worker.merge.slices import anchor_of
from evomerge_worker.prepare.architecture import check_own_configs
from evomerge_worker.prepare.data import prepare_data
from evomerge_worker.prepare.fit import check_fit
from evomerge_worker.prepare.flow import check_flows, flow_of, layers_of
from evomerge_worker.prepare.mistakes import Mistakes
from evomerge_worker.prepare.reading import reader_of
from evomerge_worker.prepare.sources import Opened, check_finite, open_source, pin
from evomerge_worker.shards.tied import own_heads
from evomerge_worker.store import Store, with_commits
from evomerge_worker.store.outline import Outline

_REPORTED = ("evomerge", "torch", "transformers", "safetensors")
__all__ = ["prepare"]


def prepare(task: PrepareTask, store: Store) -> PrepareResult:
    """Pull, check and pin everything that `task` names; every weight is read once.

    What headers and items tell of models in S3 is looked at before gigabytes of weights are pulled: a mistake takes
    seconds then. What an earlier prepare has pinned must be what it was; its weights are then not read again.

    Sources come out in the task's order, the layout is that of the first model of the pool, with all heads.

    Raises:
        InputError: all mistakes that were found, in models, data and methods, at once.
        StorageError: there are no mistakes as far as could be seen, but something could not be read just now, or is
            not what it was.
    """
    named = task.sources
    task = task.model_copy(update={"sources": [_with_commits(source) for source in named]})
    if any(source.digest is None and source.uri.startswith("s3:") for source in task.sources):
        with TemporaryDirectory() as folder:
            mistakes = Mistakes()
            opened, _ = _look(task, Outline(store, Path(folder)), mistakes)
            mistakes.raise_any(order=[source.where for source in opened])
    mistakes = Mistakes()
    opened, data = _look(task, store, mistakes)
    pinned: list[PreparedSource] = []
    for asked, source, found in zip(named, task.sources, opened, strict=True):
        if found.checkpoint is None:
            continue
        with mistakes.collected():
            if source.digest is None:  # else its content has been compared with that
                check_finite(found.checkpoint)
        if not mistakes.found:
            one = pin(found.checkpoint, source.digest, code=task.trust_remote_code)
            pinned.append(one.model_copy(update={"commits": _commits(asked, source)}))
    mistakes.raise_any(order=[source.where for source in opened])
    layout = _with_heads(next(_layouts(task, opened)), opened)
    if task.flows:
        model_type = next(source.config.model_type for source in opened if source.name != BASE)
        layout = layout.model_copy(update={"flow": flow_of(model_type, layout, layers_of(opened))})
    return PrepareResult(sources=pinned, layout=layout, data=data, versions={name: version(name) for name in _REPORTED})


def _with_commits(source: Source) -> Source:
    """The source pinned to commits of the hub; as it is where that fails, which opening it will tell."""
    with suppress(WorkerError):
        return with_commits(source, source.name)
    return source


def _commits(asked: Source, source: Source) -> dict[str, str] | None:
    """The places of a source that were pinned, each with what it was pinned to."""
    pairs = ((asked.uri, source.uri), (asked.adapter, source.adapter))
    return {one: two for one, two in pairs if one is not None and two is not None and one != two} or None


def _look(
    task: PrepareTask, store: Store, mistakes: Mistakes
) -> tuple[list[Opened], dict[str, dict[SplitName, PreparedSplit]]]:
    """Everything that can be told without a look at weights."""
    mistakes.found += _without_base(task)
    if message := template_mistake(task.chat_template or ""):
        mistakes.found.append(Problem(path="spec.chatTemplate", message=message))
    opened = [open_source(source, store, mistakes, code=task.trust_remote_code) for source in task.sources]
    pool_first = sorted(opened, key=lambda source: source.name == BASE)
    _check_fit(task, pool_first, mistakes)
    check_flows(task.flows, opened, mistakes)
    check_own_configs(opened, mistakes, evaluated=True)
    mistakes.found += _misplaced(task, opened)
    reader = reader_of(opened, mistakes, _of_all(task), code=task.trust_remote_code, batch_size=task.batch_size)
    return opened, prepare_data(task.objectives, task.data or {}, store, mistakes, reader)


def _check_fit(task: PrepareTask, opened: list[Opened], mistakes: Mistakes) -> None:
    """Whether the models of stages still to come fit together; those that are merged layer by layer in depth too."""
    pool = [source for source in opened if task.pool is None or source.name in (*task.pool, BASE)]
    merged = [source for source in pool if task.whole is None or source.name in (*task.whole, BASE)]
    if all(source.name == BASE for source in pool):
        return
    whole = len(merged) == len(pool)
    one_config = task.config_source is not None
    check_fit(pool, mistakes, whole=whole, in_place=whole, vocabulary=task.tokenizer_source, one_config=one_config)
    known = [] if whole else [source.checkpoint for source in merged if source.checkpoint is not None]
    for checkpoint in known[1:]:
        mistakes.found += other_depth(checkpoint, known[0])


def _layouts(task: PrepareTask, opened: list[Opened]) -> Iterator[Layout]:
    """Of the models of the pool, as far as they are known, under the names that results have."""
    checkpoints = {source.name: source.checkpoint for source in opened if source.checkpoint is not None}
    anchor = checkpoints.get(anchor_of(_of_all(task)))
    for name in task.pool or checkpoints:
        if name != BASE and (checkpoint := checkpoints.get(name)) is not None:
            yield (checkpoint if anchor is None else Names().under(anchor, checkpoint)).layout


def _with_heads(layout: Layout, opened: list[Opened]) -> Layout:
    """The layout with the heads that results have which it lacks: the first model may tie its own, and others not."""
    heads = own_heads(source.checkpoint for source in opened if source.checkpoint is not None)
    more = sorted(heads - {*layout.before, *layout.after})
    return layout.model_copy(update={"after": sorted([*layout.after, *more])}) if more else layout


def _misplaced(task: PrepareTask, opened: list[Opened]) -> list[Problem]:
    """A problem for every way of grouping that the first model with a layout has no place for."""
    first = next(_layouts(task, opened), None)
    if first is None:
        return []
    layout = _with_heads(first, opened)
    return [
        Problem(path=f"spec.stages[{index}].parameterSpace.groups.{field}", message=message)
        for index, groups in enumerate(task.groups)
        for field, message in misplaced(groups, layout)
    ]


def _of_all(task: PrepareTask) -> Recipe:
    """A merge of all sources whose result has the tokenizer that candidates will have."""
    names = [source.name for source in task.sources]
    needed = BASE in names and any(METHODS[name].needs_base for name in task.methods if name in METHODS)
    return Recipe(
        merge_method="linear",
        models=[RecipeModel(model=name, parameters={"weight": 1.0}) for name in names],
        base_model=BASE if needed else None,
        tokenizer_source=task.tokenizer_source,
        chat_template=task.chat_template,
        config_source=task.config_source,
    )


def _without_base(task: PrepareTask) -> list[Problem]:
    """A problem for every method that needs the base which is not there."""
    if any(source.name == BASE for source in task.sources):
        return []
    return [
        Problem(path=BASE, message=f"{name} needs a base; add spec.base or choose {without_base()}")
        for name in dict.fromkeys(task.methods)
        if name in METHODS and METHODS[name].needs_base
    ]
