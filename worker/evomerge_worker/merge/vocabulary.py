"""The vocabulary of a result: sources whose embeddings have been brought to its tokens, row by row.

What follows merges these sources as if they had had one vocabulary from the start.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from evomerge_contract.recipe import BASE_TOKENIZER, UNION, Recipe
from evomerge_contract.report import Problem
from evomerge_worker.errors import InputError, where_of
from evomerge_worker.merge.chat_template import template_of, with_template
from evomerge_worker.merge.names import Names
from evomerge_worker.merge.rows import Rows, rearranged, rows_by_number, rows_by_token
from evomerge_worker.merge.shell import config_of, with_numbers_of, write_shell
from evomerge_worker.merge.slices import anchor_of
from evomerge_worker.merge.token_choices import chosen_rows
from evomerge_worker.merge.tokens import (
    Tokens,
    difference,
    overlap_mistake,
    row_mistake,
    rowed,
    special_tokens,
    tokens_of,
    unite,
    without_row,
)
from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.config_parts import token_rows, with_token_rows
from evomerge_worker.shards.token_rows import carried_row_tensors, row_tensors
from evomerge_worker.shards.tokenizer import load_tokenizer

Sources = Mapping[str, Checkpoint]


class Vocabularies:
    """Sources brought to the vocabularies of recipes; kept, since a search's recipes share theirs."""

    def __init__(self, *, trust_remote_code: bool = False) -> None:
        self._code = trust_remote_code
        self._names = Names()
        self._done: dict[object, Sources] = {}

    def aligned(self, recipe: Recipe, checkpoints: Sources) -> Sources:
        """The sources as `recipe` merges them, by the same names: their tensors are called as the anchor's are, and
        embeddings and head have a row per token.

        The anchor's folder then holds the result's tokenizer, chat template, config and generation config. Without a
        vocabulary in the recipe, sources of one vocabulary that differ in the padding of their embeddings get the
        anchor's rows, and all others are left as they are.

        Raises:
            InputError: the vocabularies differ and the recipe says nothing of them, or they cannot be aligned.
        """
        parts = _participants(recipe, checkpoints)
        if parts is None:
            return checkpoints
        anchor = checkpoints[parts.anchor]
        checkpoints = {n: self._names.under(anchor, c) if n in parts.all else c for n, c in checkpoints.items()}
        if recipe.config_source is not None and len(parts.all) > 1:
            checkpoints = self._configured(recipe.config_source, parts, checkpoints)
        of_one = recipe.vocabulary is None and not _padded(parts, checkpoints)
        if of_one and recipe.chat_template is None:
            return checkpoints
        settings = (recipe.chat_template, recipe.vocabulary, recipe.tokenizer and recipe.tokenizer.model_dump_json())
        key = (settings, parts, tuple(sorted((name, id(c)) for name, c in checkpoints.items())))
        if key not in self._done:
            changed: Sources = {}
            if recipe.vocabulary is not None:
                changed = _tokens_aligned(recipe, parts, checkpoints, self._code)
            elif not of_one:
                changed = _padding_aligned(parts, checkpoints, self._code)
            self._done[key] = self._with_template(recipe.chat_template, parts, {**checkpoints, **changed})
        return self._done[key]

    def _with_template(self, wanted: str | None, parts: "_Participants", sources: Sources) -> Sources:
        """The sources with a chat template in the anchor's folder, where the recipe asks for one."""
        models = [sources[name] for name in dict.fromkeys([parts.anchor, *parts.all])]
        template = template_of(wanted, models, code=self._code)
        if template is None:
            return sources
        return {**sources, parts.anchor: with_template(sources[parts.anchor], template, code=self._code)}

    def _configured(self, giver: str, parts: "_Participants", checkpoints: Sources) -> Sources:
        """All that takes part with the config of `giver`; the anchor's folder holds it.

        A model alone keeps its own.
        """
        if giver not in checkpoints:
            known = ", ".join(sorted(checkpoints))
            raise InputError.at("recipe.config_source", f"{giver} is not among the sources ({known})")
        key = ("config", giver, parts, tuple(id(checkpoints[name]) for name in parts.all))
        if key not in self._done:
            of_giver, anchor = checkpoints[giver], checkpoints[parts.anchor]
            if problems := _without_its_config(of_giver, [checkpoints[name] for name in parts.all]):
                raise InputError(*problems)
            own = {name: checkpoints[name].config for name in parts.all}
            changed = {n: replace(checkpoints[n], config=config_of(of_giver.config, own[n])) for n in parts.all}
            config = changed[parts.anchor].config
            shell = write_shell(anchor, anchor, None, config, code=self._code)
            changed[parts.anchor] = replace(anchor, folder=Path(shell.name), config=config, shell=shell)
            self._done[key] = changed
        return {**checkpoints, **self._done[key]}


@dataclass(frozen=True)
class _Lenders:
    """The models whose tensors are merged at one end of the layers, and the base_model there."""

    models: tuple[str, ...]
    base: str | None


@dataclass(frozen=True)
class _Participants:
    """The models that are merged before the layers, after them, and anywhere; the anchor is among `all`."""

    anchor: str
    before: _Lenders
    after: _Lenders
    all: tuple[str, ...]


def _participants(recipe: Recipe, checkpoints: Sources) -> _Participants | None:
    """Who takes part; None where planning will refuse the recipe."""
    if (not recipe.models) == (not recipe.slices):
        return None
    anchor = anchor_of(recipe)
    if recipe.slices:
        slices = [
            _Lenders(tuple(dict.fromkeys(source.model for source in one.sources)), one.base_model or recipe.base_model)
            for one in recipe.slices
        ]
    else:
        models = [m.model for m in recipe.models or []] + ([] if recipe.base_model is None else [recipe.base_model])
        slices = [_Lenders(tuple(dict.fromkeys(models)), recipe.base_model)]
    everyone = tuple(dict.fromkeys([anchor, *(model for one in slices for model in one.models)]))
    if not set(everyone) <= set(checkpoints):
        return None
    return _Participants(anchor, slices[0], slices[-1], everyone)


def _without_its_config(giver: Checkpoint, models: Sequence[Checkpoint]) -> list[Problem]:
    """A problem for each model that cannot have the config of `giver`: of another architecture or number of layers."""

    def told(checkpoint: Checkpoint) -> str:
        return f"{checkpoint.config.get('model_type')} with {checkpoint.layout.layers} layers"

    return [
        Problem(
            path=where_of(model.name),
            message=f"is {told(model)}, and cannot have the config of {giver.name} (config_source), which is "
            f"{told(giver)}; name a model of that architecture with as many layers",
        )
        for model in models
        if told(model) != told(giver)
    ]


def _padded(parts: _Participants, checkpoints: Sources) -> bool:
    """Whether the models' embeddings differ in their rows, and in each have as many as its config says."""
    rows = {token_rows(checkpoints[name].config) for name in parts.all}
    return len(rows) > 1 and all(row_tensors(checkpoints[name]) for name in parts.all)


def _padding_aligned(parts: _Participants, checkpoints: Sources, code: bool) -> Sources:
    """Every model with the anchor's rows: one vocabulary, whose embeddings are padded differently."""
    anchor = checkpoints[parts.anchor]
    tokenizers = {name: load_tokenizer(checkpoints[name], trust_remote_code=code) for name in parts.all}
    vocabularies = {name: tokens_of(tokenizer) for name, tokenizer in tokenizers.items()}
    problems = []
    for name in parts.all:
        alien = row_mistake(checkpoints[name], tokenizers[name])
        if sentence := alien or difference(vocabularies[name], vocabularies[parts.anchor], parts.anchor):
            problems.append(Problem(path=where_of(name), message=sentence))
    if problems:
        raise InputError(*problems)
    rows = rows_by_number(_rows(anchor), {name: _rows(checkpoints[name]) for name in parts.all}, parts.anchor)
    return {name: _rearranged(name, checkpoints, rows, rows) for name in parts.all}


def _tokens_aligned(recipe: Recipe, parts: _Participants, checkpoints: Sources, code: bool) -> Sources:
    """Every model with the rows of the vocabulary that the recipe names."""
    giver = _giver(recipe, parts, checkpoints)
    names = list(dict.fromkeys([*parts.all, giver]))
    tokenizers = {name: load_tokenizer(checkpoints[name], trust_remote_code=code) for name in names}
    vocabularies = {name: rowed(tokens_of(tokenizers[name]), token_rows(checkpoints[name].config)) for name in names}
    _check(vocabularies, tokenizers, giver, checkpoints)
    whole = {name: tokens_of(tokenizer) for name, tokenizer in tokenizers.items()}
    united = None
    if recipe.vocabulary == UNION and unite(tokenizers[giver], [tokenizers[n] for n in parts.all if n != giver]):
        united = tokenizers[giver]
    choices = (recipe.tokenizer and recipe.tokenizer.tokens) or {}
    if added := [token for token in choices if token not in tokens_of(tokenizers[giver])]:
        united = tokenizers[giver]
        united.add_tokens(added)
    tokens = tokens_of(tokenizers[giver])
    _check_homeless(tokens.keys() - choices.keys(), [vocabularies[name] for name in parts.all], whole, checkpoints)
    chosen = chosen_rows(choices, tokens, {name: vocabularies[name] for name in parts.all}, checkpoints)
    multiple = (recipe.tokenizer and recipe.tokenizer.pad_to_multiple_of) or 1
    count = -(-(max(tokens.values()) + 1) // multiple) * multiple

    def rows_for(lenders: _Lenders) -> Rows:
        known = {name: vocabularies[name] for name in parts.all}
        return rows_by_token(tokens, count, known, lenders.models, lenders.base, chosen)

    before, after = rows_for(parts.before), rows_for(parts.after)
    changed = {name: _rearranged(name, checkpoints, before, after) for name in parts.all}
    anchor = checkpoints[parts.anchor]
    if united is None and giver == parts.anchor and count == token_rows(anchor.config):
        return changed
    config = with_token_rows(with_numbers_of(anchor.config, checkpoints[giver].config), count)
    shell = write_shell(anchor, checkpoints[giver], united, config, code=code)
    result = replace(changed[parts.anchor], folder=Path(shell.name), config=config, shell=shell)
    return {**changed, parts.anchor: result}


def _giver(recipe: Recipe, parts: _Participants, checkpoints: Sources) -> str:
    """The model whose tokenizer the result's is, or is made from.

    A source that is called base is meant by that name; without one, `base` is the recipe's base_model, else its first
    model.
    """
    wanted = str(recipe.vocabulary)
    if wanted == UNION:
        return parts.anchor
    if wanted in checkpoints:
        return wanted
    if wanted == BASE_TOKENIZER:
        return parts.anchor
    known = ", ".join([UNION, BASE_TOKENIZER, *sorted(checkpoints)])
    raise InputError.at("recipe.tokenizer_source", f"{wanted} is not among what it may be ({known})")


def _check(vocabularies: Mapping[str, Tokens], tokenizers: Mapping[str, Any], giver: str, checkpoints: Sources) -> None:
    """Refuse tokenizers that are not their model's own, and those without overlap."""
    special = set().union(*(special_tokens(tokenizer) for tokenizer in tokenizers.values()))
    problems = []
    for name, tokens in vocabularies.items():
        if sentence := row_mistake(checkpoints[name], tokenizers[name]):
            problems.append(Problem(path=where_of(name), message=sentence))
        if sentence := overlap_mistake(tokens, vocabularies[giver], giver, special):
            problems.append(Problem(path=where_of(name), message=sentence))
        if not row_tensors(checkpoints[name]):
            sentence = "no tensor has a row per token (as many as vocab_size in config.json), so none can be aligned"
            problems.append(Problem(path=where_of(name), message=sentence))
    if problems:
        raise InputError(*problems)


def _check_homeless(
    tokens: Set[str], merged: Sequence[Tokens], whole: Mapping[str, Tokens], checkpoints: Sources
) -> None:
    """Refuse `tokens` that were added to a model without a row, and have none in any that is merged.

    `merged` are the tokens that have one, `whole` all of each model.
    """
    homeless = tokens - set().union(*merged)
    problems = []
    for name, its_own in whole.items():
        missed = {token: number for token, number in its_own.items() if token in homeless}
        if sentence := without_row(missed, missed, token_rows(checkpoints[name].config), needed=True):
            problems.append(Problem(path=where_of(name), message=sentence))
    if problems:
        raise InputError(*problems)


def _rearranged(name: str, checkpoints: Sources, before: Rows, after: Rows) -> Checkpoint:
    """A source whose embeddings have the rows `before`, and its head the rows `after`."""
    checkpoint = checkpoints[name]
    if all(rows.kept(name, _rows(checkpoint)) for rows in (before, after)):
        return checkpoint
    inputs = set(checkpoint.layout.before)

    def maker(tensor: str) -> Callable[[], Tensor]:
        rows = before if tensor in inputs else after
        return partial(rearranged, rows, name, lambda model: _tensor_like(checkpoints[model], tensor))

    tensors = (*row_tensors(checkpoint), *carried_row_tensors(checkpoint))
    return checkpoint.with_rows(before.count, {tensor: maker(tensor) for tensor in tensors})


def _tensor_like(checkpoint: Checkpoint, name: str) -> Tensor:
    """The tensor of that name; where a model has no head because it is tied, its embeddings."""
    return checkpoint.tensor(name if name in checkpoint else row_tensors(checkpoint)[0])


def _rows(checkpoint: Checkpoint) -> int:
    return token_rows(checkpoint.config) or 0
