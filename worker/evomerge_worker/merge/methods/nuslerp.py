"""NuSLERP: SLERP between two sources by their weights, of whole tensors or of their rows or columns.

With a base it is their task vectors that are interpolated (Shoemake 1985; mergekit's `nuslerp`).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from evomerge_worker.merge.method import Source, back, offset
from evomerge_worker.merge.sums import row_totals

_NO_WEIGHT = 1e-6  # weights that sum to less count as equal
_NO_NORM = 1e-7
_STRAIGHT = 2.0**-24  # a squared sine that float32 cannot tell from zero


def merge(sources: Sequence[Source], base: Tensor, shared: Mapping[str, float]) -> Tensor:
    """(sin((1 - t) a) x + sin(t a) y) / sin(a), with a the angle between x and y and t = weight_y / sum of weights.

    Where x and y lie on one line, in whatever direction, (1 - t) x + t y.
    `nuslerp_flatten` takes each tensor as one vector; else each vector along the last dimension is one, or along the
    first with `nuslerp_row_wise`.
    """
    first, second = sources
    weight = first.values["weight"] + second.values["weight"]
    t = 0.5 if abs(weight) < _NO_WEIGHT else second.values["weight"] / weight
    turned = bool(shared["nuslerp_row_wise"]) and not shared["nuslerp_flatten"] and first.tensor.dim() > 1
    whole = bool(shared["nuslerp_flatten"]) or first.tensor.dim() < 2
    x, y = (_rows(offset(source.tensor, base), whole=whole, turned=turned) for source in sources)
    of_x, of_y = _coefficients(_cosines(x, y), t)
    mixed = x.mul_(of_x).add_(y.mul_(of_y))
    return back((mixed.transpose(0, -1) if turned else mixed).reshape(first.tensor.shape), base)


def _rows(tensor: Tensor, *, whole: bool, turned: bool) -> Tensor:
    """The tensor with the vectors that are interpolated along its last dimension."""
    if whole:
        return tensor.reshape(1, -1)
    return tensor.transpose(0, -1).contiguous() if turned else tensor


def _cosines(x: Tensor, y: Tensor) -> Tensor:
    """Of the angles between the rows; a row without a direction counts as orthogonal to every other."""
    norms = [row_totals(rows.square()).sqrt().clamp_(min=_NO_NORM) for rows in (x, y)]
    return (row_totals(x * y) / norms[0] / norms[1]).clamp_(-1, 1)


def _coefficients(cosines: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """What the rows are multiplied by, in float32. By NumPy: torch's sines depend on how threads share them out."""
    cosine = cosines.cpu().numpy()
    straight = 1 - cosine**2 <= _STRAIGHT
    angle = np.arccos(np.where(straight, 0.0, cosine))
    of_x = np.where(straight, 1 - t, np.sin((1 - t) * angle) / np.sin(angle))
    of_y = np.where(straight, t, np.sin(t * angle) / np.sin(angle))
    device = cosines.device
    return (torch.from_numpy(of_x).float().to(device), torch.from_numpy(of_y).float().to(device))
