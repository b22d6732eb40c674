"""Carrying out a plan, tensor by tensor, in float32 with one rounding at the end."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from evomerge_worker.errors import CandidateError
from evomerge_worker.merge.draws import keep_mask
from evomerge_worker.merge.method import Source
from evomerge_worker.merge.methods import method_named
from evomerge_worker.merge.plan import Input, TensorPlan
from evomerge_worker.shards import Checkpoint

CPU = torch.device("cpu")
_NO_BASE = torch.empty(0)


def merged(
    plans: Iterable[TensorPlan], checkpoints: Mapping[str, Checkpoint], mask_seed: int, device: torch.device = CPU
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the result by name, each in its plan's dtype, on `device`. `mask_seed` is DARE's.

    Raises:
        CandidateError: a tensor that is not finite comes out.
    """
    for plan in plans:
        tensor = merge_tensor(plan, checkpoints, mask_seed, device).to(plan.dtype)
        if tensor.is_floating_point() and not bool(checksum(tensor).isfinite()):
            raise not_finite(plan.name)
        yield plan.name, tensor


def merge_tensor(
    plan: TensorPlan, checkpoints: Mapping[str, Checkpoint], mask_seed: int, device: torch.device = CPU
) -> Tensor:
    """One tensor of the result in float32, not yet rounded to its dtype; a copied one as it is."""

    def load(item: Input) -> Tensor:
        return checkpoints[item.model].tensor(item.tensor).to(device)

    if plan.method is None:
        return load(plan.inputs[0])
    sources = []
    for place, item in enumerate(plan.inputs):
        tensor = load(item)
        sources.append(Source(tensor, item.values, partial(_keep, mask_seed, place, item, tensor)))
    base = _NO_BASE if plan.base is None else load(plan.base)
    try:
        return method_named(plan.method)(sources, base, plan.shared)
    except CandidateError as error:
        raise CandidateError(error.reason, f"tensor {plan.name}: {error}") from error


def checksum(tensor: Tensor) -> Tensor:
    """A scalar that is finite only if all of `tensor` is: one pass, and no wait for the device."""
    return tensor.sum(dtype=torch.float32 if tensor.dtype == torch.float16 else None)  # float16 has no room for sums


def not_finite(name: str) -> CandidateError:
    """The failure of a merge whose tensor `name` came out wrong."""
    return CandidateError("NotFinite", f"tensor {name} of the merged model holds NaN or infinity")


def _keep(mask_seed: int, place: int, item: Input, tensor: Tensor, density: float) -> Tensor:
    return keep_mask(mask_seed, place, item.tensor, tensor.shape, density).to(tensor.device)
