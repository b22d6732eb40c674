"""Rows of embeddings brought into the order of another vocabulary, token by token."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from evomerge_worker.merge.formula import pieces
from evomerge_worker.merge.tokens import Tokens
from evomerge_worker.pages import in_file


@dataclass(frozen=True)
class Rows:
    """Which row of each model stands for each of the result's `count` rows.

    `own` holds for each model its row for every row of the result, int64 [count], -1 where it has none. `lent` says
    whose rows a model takes for what it lacks: the mean over the models named, zeros if none is named, for the rows of
    the result that are set, bool [count]. Where `unused` is set, no token has the row: it gets the mean of all others.
    `chosen` holds the row that a recipe has chosen out of a model's for what others lack, int64 [count], -1 for none.
    """

    count: int
    own: Mapping[str, Tensor]
    lent: Mapping[tuple[str, ...], Tensor]
    unused: Tensor
    chosen: Mapping[str, Tensor] = field(default_factory=dict)

    def kept(self, model: str, rows: int) -> bool:
        """Whether the model's `rows` rows are the result's as they are."""
        return rows == self.count and torch.equal(self.own[model], torch.arange(rows))


class Choice(NamedTuple):
    """What a recipe chooses for a row of the result: a row of a model, or zeros; `force`: for all models."""

    model: str | None
    row: int
    force: bool


def rows_by_token(
    tokens: Tokens,
    count: int,
    models: Mapping[str, Tokens],
    lenders: Sequence[str],
    base: str | None,
    choices: Mapping[int, Choice] | None = None,
) -> Rows:
    """The rows of a result with the vocabulary `tokens`, as mergekit chooses them.

    Each of `models` (name to its own vocabulary) keeps its embedding of every token that it knows. What it does not
    know it takes from `lenders`, the models that take part: from the only one that knows the token, else from `base` if
    that one takes part and knows it, else the mean of those that know it, and zeros if none does. For the rows of the
    result that `choices` has, it takes what was chosen.
    """
    choices = choices or {}
    forced = [number for number, choice in choices.items() if choice.force]
    own = {}
    for model, its_tokens in models.items():
        rows = torch.full((count,), -1, dtype=torch.int64)
        known = [(number, its_tokens[token]) for token, number in tokens.items() if token in its_tokens]
        if known:
            rows[torch.tensor([to for to, _ in known])] = torch.tensor([origin for _, origin in known])
        rows[forced] = -1
        own[model] = rows
    unused = torch.ones(count, dtype=torch.bool)
    unused[torch.tensor(list(tokens.values()))] = False
    lendable = ~unused
    lendable[list(choices)] = False
    return Rows(count, own, _lent(own, lenders, base, lendable), unused, _chosen(choices, count))


def _chosen(choices: Mapping[int, Choice], count: int) -> dict[str, Tensor]:
    """The chosen rows by model; zeros are what a row has that nobody gives."""
    chosen: dict[str, Tensor] = {}
    for number, choice in choices.items():
        if choice.model is not None:
            chosen.setdefault(choice.model, torch.full((count,), -1, dtype=torch.int64))[number] = choice.row
    return chosen


def _lent(
    own: Mapping[str, Tensor], lenders: Sequence[str], base: str | None, lendable: Tensor
) -> dict[tuple[str, ...], Tensor]:
    """For every set of lenders the rows that are theirs to give, out of the `lendable` ones."""
    knows = torch.stack([own[model] >= 0 for model in lenders])
    if base in lenders:
        of_base = knows[lenders.index(base)].clone()
        knows &= ~of_base
        knows[lenders.index(base)] = of_base
    patterns, which = torch.unique(knows, dim=1, return_inverse=True)
    return {
        tuple(model for model, it in zip(lenders, patterns[:, i].tolist(), strict=True) if it): (which == i) & lendable
        for i in range(patterns.shape[1])
    }


def rows_by_number(count: int, models: Mapping[str, int], filler: str) -> Rows:
    """The rows where all models have one vocabulary and differ in padding: cut off, or filled up with `filler`'s.

    `models` holds the rows that each has; `filler` has `count`.
    """
    numbers = torch.arange(count)
    own = {model: torch.where(numbers < rows, numbers, -1) for model, rows in models.items()}
    everywhere = torch.ones(count, dtype=torch.bool)
    return Rows(count, own, {(filler,): everywhere}, ~everywhere)


def rearranged(rows: Rows, model: str, tensor_of: Callable[[str], Tensor]) -> Tensor:
    """The model's tensor of shape [its rows, ...] as [rows.count, ...]; `tensor_of` gives those of models by name.

    It has the dtype of the tensors it is made of, float32 where a mean is among the rows. A large one lies in a file.
    """
    tensor, own = tensor_of(model), rows.own[model]
    if torch.equal(own, torch.arange(rows.count)):
        return tensor[: rows.count]
    parts = [(own >= 0, [(model, own)])]
    parts += [((own < 0) & lent, [(name, rows.own[name]) for name in names]) for names, lent in rows.lent.items()]
    parts += [((own < 0) & (origins >= 0), [(name, origins)]) for name, origins in rows.chosen.items()]
    parts = [(places, givers) for places, givers in parts if bool(places.any())]
    unused = bool(rows.unused.any())
    averaged = unused or any(len(givers) > 1 for _, givers in parts)
    tensors = {name: tensor_of(name) for _, givers in parts for name, _ in givers}
    result = in_file((rows.count, *tensor.shape[1:]), _dtype(tensor, *tensors.values(), wide=averaged))
    total = torch.zeros(tensor.shape[1:], dtype=torch.float64)
    for piece in pieces(result):
        some = result[piece].zero_()
        for places, givers in parts:
            here = places[piece]
            for name, origins in givers:
                some[here] += tensors[name][origins[piece][here]].to(result.dtype)
            if len(givers) > 1:
                some[here] /= len(givers)
        if unused:
            total += some[~rows.unused[piece]].sum(dim=0, dtype=torch.float64)
    if unused:
        result[rows.unused] = (total / int((~rows.unused).sum())).to(result.dtype)
    return result


def _dtype(*tensors: Tensor, wide: bool) -> torch.dtype:
    dtypes = [tensor.dtype for tensor in tensors] + [torch.float32] * wide
    return reduce(torch.promote_types, dtypes)
