"""Log-likelihoods of token sequences, batch by batch."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from evomerge_worker import meter
from evomerge_worker.errors import CandidateError
from evomerge_worker.evaluate.prompts import batched

_CHUNK = 1 << 24
"""So many logits are widened to fp32 at a time."""


@dataclass(frozen=True, slots=True)
class Target:
    """`tokens[start:]` are scored, each given all tokens before it; start is at least 1."""

    tokens: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of input padded on the right, which causal attention never sees, and the n predictions wanted of them.

    ids: [rows, length]; prediction k is of `token[k]`, at `row[k]` and `position[k]`, for target `owner[k]` (all [n]).
    """

    ids: torch.Tensor
    row: torch.Tensor
    position: torch.Tensor
    token: torch.Tensor
    owner: npt.NDArray[np.intp]


def batches_of(targets: Sequence[Target], batch_size: int) -> list[Batch]:
    """Batches of near-equal length; targets of one input (choices of one token after one prompt) share a row."""
    owners: dict[tuple[int, ...], list[int]] = {}
    for index, target in enumerate(targets):
        owners.setdefault(target.tokens[:-1], []).append(index)
    inputs = list(owners)
    return [
        _batch([inputs[i] for i in indices], [owners[inputs[i]] for i in indices], targets)
        for indices in batched([len(tokens) for tokens in inputs], batch_size)
    ]


def _batch(inputs: list[tuple[int, ...]], owners: list[list[int]], targets: Sequence[Target]) -> Batch:
    length = max(map(len, inputs))
    wanted = [
        (row, position - 1, targets[owner].tokens[position], owner)
        for row, indices in enumerate(owners)
        for owner in indices
        for position in range(targets[owner].start, len(targets[owner].tokens))
    ]
    row, position, token, owner = (list(column) for column in zip(*wanted, strict=True))
    return Batch(
        ids=torch.tensor([[*tokens, *[0] * (length - len(tokens))] for tokens in inputs]),
        row=torch.tensor(row),
        position=torch.tensor(position),
        token=torch.tensor(token),
        owner=np.array(owner),
    )


@torch.inference_mode()
def log_likelihoods(model: Any, batches: Sequence[Batch], targets: int, items: int) -> npt.NDArray[np.float64]:
    """The log-likelihood of each target in nats, [targets]; `items` is how many items the targets are of.

    Raises:
        CandidateError: one is not finite.
    """
    totals = np.zeros(targets)
    for batch in batches:
        totals += np.bincount(batch.owner, weights=_predictions(model, batch), minlength=targets)
        meter.items(items * len(np.unique(batch.owner)) / targets)
    if not np.isfinite(totals).all():
        raise CandidateError("NotFinite", "the model's log-likelihoods are not finite")
    return totals


def _predictions(model: Any, batch: Batch) -> npt.NDArray[np.float64]:
    """Log-probability of each prediction of a batch, [n]; the softmax is taken in fp32, a bounded part at a time."""
    device = model.device
    first, last = int(batch.position.min()), int(batch.position.max())
    options = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = torch.arange(first, last + 1, device=device)
    else:
        first = 0
    logits = model(input_ids=batch.ids.to(device), use_cache=False, **options).logits
    row, position, token = batch.row.to(device), batch.position.to(device) - first, batch.token.to(device)
    step = max(1, _CHUNK // logits.shape[-1])
    parts = [
        -cross_entropy(logits[row[k : k + step], position[k : k + step]].float(), token[k : k + step], reduction="none")
        for k in range(0, len(token), step)
    ]
    values: npt.NDArray[np.float64] = torch.cat(parts).double().cpu().numpy()
    return values
