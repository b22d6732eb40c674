"""NuSLERP: SLERP between two sources by their weights, of whole tensors or of their rows or columns.

With a base it is their task vectors that are interpolated (Shoemake 1985; mergekit's `nuslerp`).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge_worker.merge.formula import Formula, Piecewise, columns, combination, rows
from evomerge_worker.merge.method import InputTensor, offset
from evomerge_worker.merge.sums import inner_products, row_products

_NO_WEIGHT = 1e-6  # weights that sum to less count as equal
_NO_NORM = 1e-7
_STRAIGHT = 2.0**-24  # a squared sine that float32 cannot tell from zero
_OPPOSED = 2.0**-20  # the same where vectors point away from each other: nothing may be divided by rounding errors

_Floats = NDArray[np.float64]


def merge(sources: Sequence[InputTensor], base: Tensor, shared: Mapping[str, float]) -> Formula:
    """(sin((1 - t) a) x + sin(t a) y) / sin(a), with a the angle between x and y and t = weight_y / sum of weights.

    Where x and y lie on one line, in whatever direction, (1 - t) x + t y.
    `nuslerp_flatten` takes each tensor as one vector; else each vector along the last dimension is one, or along the
    first with `nuslerp_row_wise`.
    """
    first, second = sources
    weight = first.values["weight"] + second.values["weight"]
    t = 0.5 if abs(weight) < _NO_WEIGHT else second.values["weight"] / weight
    tensors = [source.tensor for source in sources]
    if shared["nuslerp_flatten"] or tensors[0].dim() < 2:
        factors = _coefficients(_cosine(inner_products(tensors, base)), t)
        return combination(tensors, [float(factor) for factor in factors], base)
    view = columns if shared["nuslerp_row_wise"] else rows

    def turned(part: slice) -> Tensor:
        origin = view(base)[part] if base.numel() else base
        x, y = (offset(view(tensor)[part], origin).contiguous() for tensor in tensors)
        of_x, of_y = (
            torch.from_numpy(of).float().to(x.device) for of in _coefficients(_cosines(x.double(), y.double()), t)
        )
        mixed = x.mul_(of_x).add_(y.mul_(of_y))
        return mixed.add_(origin) if origin.numel() else mixed

    return Piecewise(view, turned)


def _cosine(products: _Floats) -> _Floats:
    """Of the angle between two vectors; one without a direction counts as orthogonal to every other."""
    norms = np.sqrt(np.diag(products)).clip(min=_NO_NORM)
    return np.asarray(products[0, 1] / norms[0] / norms[1]).clip(-1, 1)


def _cosines(x: Tensor, y: Tensor) -> _Floats:
    """The same between the rows of two float64 tensors [n, m]: [n, 1]."""
    norms = [row_products(rows, rows).sqrt().clamp_(min=_NO_NORM) for rows in (x, y)]
    return (row_products(x, y) / norms[0] / norms[1]).clamp_(-1, 1).cpu().numpy()


def _coefficients(cosine: _Floats, t: float) -> tuple[_Floats, _Floats]:
    """What the vectors are multiplied by. By NumPy: torch's sines depend on how threads share them out."""
    straight = 1 - cosine**2 <= np.where(cosine < 0, _OPPOSED, _STRAIGHT)
    angle = np.arccos(np.where(straight, 0.0, cosine))
    of_x = np.where(straight, 1 - t, np.sin((1 - t) * angle) / np.sin(angle))
    of_y = np.where(straight, t, np.sin(t * angle) / np.sin(angle))
    return of_x, of_y
