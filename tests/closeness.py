"""How near a merged tensor is to mergekit's, and what may lie between them."""

import torch
from torch import Tensor

from evomerge_worker.merge import TensorPlan
from evomerge_worker.shards import Checkpoint

OPERAND_STEPS = 4
"""Where operands cancel, a step of a tiny result is finer than float32 resolves them: the sums of both sides may then
differ by a few of the operands' own float32 steps."""
NORM_STEPS = {"float32": 16, "float64": 8}
"""What is divided by norms and cosines takes over their errors, all elements alike. mergekit adds up thousands of
squares and products in float32: on the corpus, with results in float32, its elements are up to 14 steps from ours
(multislerp of task vectors; karcher 10, nuslerp 6, model_stock 5), whose sums are nearly exact. From mergekit's own
results in float64 ours are at most 5 steps away: that bound is for the handful of roundings on our side."""

RESCALE_STEPS = 8
"""What restores an L1 norm in float32 takes over the errors of two sums that mergekit adds up in float32: its elements
are up to 4 steps from the exact ones (DELLA on the corpus), ours, whose sums are nearly exact, 2, and both 6 apart."""


def apart(ours: Tensor, theirs: Tensor, operands: Tensor, operand_steps: int) -> Tensor:
    """By how much two results differ, element by element, in units of what rounding explains.

    That is one step of the output's dtype; or so many steps that float32 has at the largest of the operands.
    """
    allowed = torch.maximum(steps(ours.dtype, theirs), operand_steps * steps(torch.float32, operands))
    return (ours.double() - theirs.double()).abs() / allowed


def steps(dtype: torch.dtype, value: Tensor) -> Tensor:
    """The distance from each value to the next larger one of its dtype, in float64."""
    info = torch.finfo(dtype)
    exponent = torch.floor(torch.log2(value.double().abs().clamp(min=info.smallest_normal)))
    return torch.exp2(exponent) * info.eps


def operands(plan: TensorPlan, checkpoints: dict[str, Checkpoint]) -> Tensor:
    """The largest of the values that take part, element by element: those of the sources, and what a task vector's
    elements are multiplied to where few are kept and its norm is restored."""
    inputs = [*plan.inputs, *([plan.base] if plan.base else [])]
    values = [checkpoints[i.model].tensor(i.tensor).double() for i in inputs]
    if plan.base is not None and plan.shared.get("rescale"):
        *tensors, base = values
        kept = [(x, item.values["density"]) for x, item in zip(tensors, plan.inputs, strict=True)]
        values += [(x - base) / density for x, density in kept if 0 < density < 1]
    return torch.stack(values).abs().amax(0)
