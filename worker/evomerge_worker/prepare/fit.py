"""Whether the sources fit together: configuration, vocabulary and tensors, all against the first model of the pool."""

from collections.abc import Sequence

from evomerge_contract.manifest import BASE
from evomerge_contract.recipe import Recipe, RecipeModel
from evomerge_contract.report import Problem
from evomerge_worker.merge.plan import plan_merge
from evomerge_worker.prepare.config import differences
from evomerge_worker.prepare.mistakes import Mistakes
from evomerge_worker.prepare.sources import Opened
from evomerge_worker.prepare.vocabulary import difference
from evomerge_worker.shards import Checkpoint


def check_fit(sources: Sequence[Opened], mistakes: Mistakes, *, whole: bool = True) -> None:
    """Collect what keeps `sources` from being merged with each other, the base included.

    `whole` says that whole models are merged, which must have as many layers as one another.
    """
    in_order = sorted(sources, key=lambda source: source.name == BASE)  # the pool first
    _check_configs([s for s in in_order if s.config is not None], mistakes)
    _check_vocabularies([s for s in in_order if s.vocabulary is not None], mistakes)
    _check_tensors([s for s in in_order if s.checkpoint is not None], mistakes, whole)


def _check_configs(sources: Sequence[Opened], mistakes: Mistakes) -> None:
    for source in sources[1:]:
        for sentence in differences(source.config, sources[0].config, sources[0].name):
            mistakes.found.append(Problem(path=source.where, message=sentence))


def _check_vocabularies(sources: Sequence[Opened], mistakes: Mistakes) -> None:
    for source in sources[1:]:
        if source.vocabulary is None or sources[0].vocabulary is None:
            continue
        sentence = difference(source.vocabulary, sources[0].vocabulary, sources[0].name)
        if sentence is not None:
            mistakes.found.append(Problem(path=source.where, message=sentence))


def _check_tensors(sources: Sequence[Opened], mistakes: Mistakes, whole: bool) -> None:
    """Plan a merge of all: what it refuses here, it would refuse in every candidate."""
    first = sources[0] if sources else None
    fitting: dict[str, Checkpoint] = {}
    for source in sources:
        if first is None or first.checkpoint is None or source.checkpoint is None or _other_architecture(source, first):
            continue
        layers, wanted = source.checkpoint.layout.layers, first.checkpoint.layout.layers
        if layers == wanted:
            fitting[source.name] = source.checkpoint
        elif whole:
            sentence = f"has {layers} layers, but {first.name} has {wanted}"
            mistakes.found.append(Problem(path=source.where, message=sentence))
    if fitting:
        models = [RecipeModel(model=name, parameters={"weight": 1.0}) for name in fitting]
        with mistakes.collected():
            plan_merge(Recipe(merge_method="linear", models=models), fitting)


def _other_architecture(source: Opened, first: Opened) -> bool:
    """Told already: their tensors need no comparison."""
    return None not in (source.config, first.config) and source.config.model_type != first.config.model_type
