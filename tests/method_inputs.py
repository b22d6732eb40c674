"""What merge methods are tested with: seeded tensors, sources of them, settings for every method of the contract."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from evomerge_contract.methods import METHODS, Method
from evomerge_worker.merge.draws import Drawing
from evomerge_worker.merge.method import InputTensor
from evomerge_worker.merge.methods import method_named
from evomerge_worker.merge.run import carry_out

SHAPE = (7, 11)
NO_BASE = torch.empty(0)
FAMILY = {"normalize": False, "rescale": False, "lambda": 1.0, "int8_mask": False}

_VALUES = {"weight": (0.7, -0.3), "density": (0.4, 0.6), "epsilon": (0.1, 0.2), "gamma": (0.05, 0.1), "scale": (1.5, 1)}
_VALUES |= {"scale_origin": (-1.0, 0.0)}
_SHARED = {"lambda": 1.1, "t": 0.3, "select_topk": 0.5, "max_iter": 5.0, "tol": 1e-5, "eps": 1e-8}
_SHARED |= {"r": 0.5, "alpha": 0.7, "epsilon": 0.4}


def random_tensor(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Of normally distributed elements."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@contextmanager
def on_threads(number: int) -> Iterator[None]:
    """torch works with so many meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def source(tensor: Tensor, place: int = 0, **values: float) -> InputTensor:
    """A source with the random draws of seed 0."""
    return InputTensor(tensor, "t", values, Drawing(0, lambda: str(place)))


def carried_out(method: str, sources: Sequence[InputTensor], base: Tensor, shared: Mapping[str, float]) -> Tensor:
    """What a method makes of the sources, in float32."""
    out = torch.empty((base if base.numel() else sources[0].tensor).shape)
    carry_out(method_named(method)(sources, base, shared), out)
    return out


def close(result: Tensor, expected: Tensor) -> None:
    """Equal to a few roundings in float32 of what was computed in float64."""
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=4e-7 * float(expected.abs().max()))


def some_sources(method: str, *tensors: Tensor) -> list[InputTensor]:
    """As many of two tensors as the method takes, with some value for each of its parameters."""
    known = METHODS[method]
    return [
        source(tensor, place, **{name: _VALUES[name][place] for name in known.per_model})
        for place, tensor in enumerate(tensors[: known.most])
    ]


def some_settings(method: str, **chosen: float) -> dict[str, float]:
    """Some value for each parameter that is not per model, switches on."""
    known: Method = METHODS[method]
    values = {name: _SHARED[name] for name in (*known.shared, *known.numerics)}
    return values | dict.fromkeys(known.switches, True) | chosen
