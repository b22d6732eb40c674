"""Whether sources fit together: configuration, vocabulary and tensors, all against the first of them."""

from collections.abc import Mapping, Sequence
from functools import partial

from evomerge_contract.recipe import Recipe, RecipeModel
from evomerge_contract.report import Problem
from evomerge_worker.errors import where_of
from evomerge_worker.merge.fit import Misfits, check_layer, check_tensor, either_out, other_depth, outside_tensors
from evomerge_worker.merge.names import Names
from evomerge_worker.merge.plan import plan_merge
from evomerge_worker.merge.tokens import difference
from evomerge_worker.prepare.config import differences, other_sizes
from evomerge_worker.prepare.mistakes import Mistakes
from evomerge_worker.prepare.sources import Opened
from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.config_parts import token_rows
from evomerge_worker.shards.token_rows import row_tensors

_WHOSE_CONFIG = "say whose config counts (in a manifest spec.configSource, in a recipe config_source)"
_BY_SLICES = "bring layers of one kind together by slices in a recipe, or "


def check_fit(
    sources: Sequence[Opened],
    mistakes: Mistakes,
    *,
    whole: bool = True,
    in_place: bool = True,
    vocabulary: str | None = None,
    one_config: bool = False,
) -> None:
    """Collect what keeps `sources` from being merged with the first of them.

    `whole` says that whole models are merged, and so every tensor of one with that of the others; of slices, planning
    tells which are. `in_place` says that each layer is merged with the layers of its number: where layers move, what
    configurations say layer by layer moves with them. Without a `vocabulary` (a recipe's `tokenizer_source`) they must
    have the same tokens; unless all get `one_config`, it may not matter whose they have.
    """
    _check_configs([s for s in sources if s.config is not None], mistakes, in_place, one_config)
    if vocabulary is None:
        _check_vocabularies([s for s in sources if s.vocabulary is not None], mistakes)
    for source in sources:
        if source.checkpoint is not None:
            mistakes.found += _without_rows(source.checkpoint)
    if whole:
        _check_tensors([s for s in sources if s.checkpoint is not None], mistakes)


def check_config_donor(donor: Opened, merged: Opened, mistakes: Mistakes) -> None:
    """Collect where `donor`, which is not merged and whose config the result has, is of other sizes than `merged`.

    Planning tells of another architecture or number of layers.
    """
    if donor.config is None or merged.config is None or donor.config.model_type != merged.config.model_type:
        return
    for found in differences(donor.config, merged.config, merged.name, in_place=False):
        if found.of_tensors:
            message = f"{found.sentence}, which cannot have this config; let config_source name a model of its sizes"
            mistakes.found.append(Problem(path=donor.where, message=message))


def _check_configs(sources: Sequence[Opened], mistakes: Mistakes, in_place: bool, one_config: bool) -> None:
    for source in sources[1:]:
        for found in differences(source.config, sources[0].config, sources[0].name, in_place=in_place):
            if one_config and not found.of_tensors:
                continue
            way_out = _BY_SLICES if found.of_layers else "" if found.of_tensors else f"{_WHOSE_CONFIG}, or "
            message = f"{found.sentence}; {way_out}{either_out(source.name, sources[0].name)}"
            mistakes.found.append(Problem(path=source.where, message=message))
        if other_sizes(source.config, sources[0].config, in_place=in_place):
            mistakes.strange.add(source.name)


def _check_vocabularies(sources: Sequence[Opened], mistakes: Mistakes) -> None:
    for source in sources[1:]:
        if source.vocabulary is None or sources[0].vocabulary is None:
            continue
        sentence = difference(source.vocabulary, sources[0].vocabulary, sources[0].name)
        if sentence is not None:
            mistakes.found.append(Problem(path=source.where, message=sentence))


def _check_tensors(sources: Sequence[Opened], mistakes: Mistakes) -> None:
    """Plan a merge of all: what it refuses here, it would refuse in every candidate."""
    first, names = sources[0] if sources else None, Names()
    fitting: dict[str, Checkpoint] = {}
    for source in sources:
        if first is None or first.checkpoint is None or source.checkpoint is None or source.name in mistakes.strange:
            continue
        checkpoint = names.under(first.checkpoint, source.checkpoint)
        if deeper := other_depth(checkpoint, first.checkpoint):
            mistakes.found += [*deeper, *_misfits_of_common_layers(first.checkpoint, checkpoint)]
        else:
            fitting[source.name] = checkpoint
    if fitting:
        models = [RecipeModel(model=name, parameters={"weight": 1.0}) for name in fitting]
        with mistakes.collected():
            plan_merge(Recipe(merge_method="linear", models=models), _of_one_size(fitting))


def _without_rows(checkpoint: Checkpoint) -> list[Problem]:
    """A problem if the config counts rows that no tensor has."""
    rows = token_rows(checkpoint.config)
    if rows is None or row_tensors(checkpoint):
        return []
    message = (
        f"vocab_size in config.json is {rows}, but no tensor has as many rows: config.json is another model's; "
        f"restore {checkpoint.name}'s"
    )
    return [Problem(path=where_of(checkpoint.name), message=message)]


def _of_one_size(checkpoints: Mapping[str, Checkpoint]) -> dict[str, Checkpoint]:
    """The same models as if all embeddings had as many rows: merging sees to those."""
    rows = max((token_rows(c.config) or 0 for c in checkpoints.values() if row_tensors(c)), default=0)
    return {
        name: checkpoint.with_rows(rows, {t: partial(checkpoint.tensor, t) for t in row_tensors(checkpoint)})
        for name, checkpoint in checkpoints.items()
    }


def _misfits_of_common_layers(first: Checkpoint, other: Checkpoint) -> list[Problem]:
    """What does not fit besides the number of layers, which no plan gets past."""
    misfits = Misfits()
    both = _of_one_size({first.name: first, other.name: other})
    first, other = both[first.name], both[other.name]
    before, after = outside_tensors(first, [other], [other], misfits)
    pairs = [(name, name) for name in (*before, *after) if name in first]
    for layer in range(min(first.layout.layers, other.layout.layers)):
        check_layer(first, layer, other, layer, misfits)
        ours, theirs = (f"{checkpoint.layout.layer_prefix}{layer}." for checkpoint in (first, other))
        pairs += [(ours + rest, theirs + rest) for rest in first.layer_tensors[layer]]
    for name, its_name in pairs:
        check_tensor(first, name, [(other.name, its_name)], both, misfits)
    return misfits.problems()
