"""The merge methods a recipe may name, with mergekit's parameters: what a manifest may search and a recipe may set."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Range:
    """The values a real parameter may take, both ends included; None is unbounded."""

    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Method:
    """A published merge method.

    `per_model` and `shared` name its real parameters (a value per source, or one for all);
    `switches` its booleans with mergekit's default; `defaults` the values taken when a recipe is silent
    (a parameter that is in neither must be given). A `random` one draws masks: another seed gives another merge.
    """

    per_model: dict[str, Range] = field(default_factory=dict)
    shared: dict[str, Range] = field(default_factory=dict)
    switches: dict[str, bool] = field(default_factory=dict)
    defaults: dict[str, float] = field(default_factory=dict)
    needs_base: bool = False
    random: bool = False
    models: int | None = None  # exactly so many sources; None is any number

    @property
    def real(self) -> dict[str, Range]:
        """All real parameters, per model and shared."""
        return self.per_model | self.shared


_WEIGHT = {"weight": Range()}
_SPARSE = {"weight": Range(), "density": Range(0.0, 1.0)}
_LAMBDA = {"lambda": Range()}


def _task_arithmetic(per_model: dict[str, Range], *, normalize: bool, rescale: bool, random: bool = False) -> Method:
    return Method(
        per_model=per_model,
        shared=_LAMBDA,
        switches={"normalize": normalize, "rescale": rescale, "int8_mask": False},
        defaults={"density": 1.0, "lambda": 1.0},
        needs_base=True,
        random=random,
    )


METHODS: dict[str, Method] = {
    "linear": Method(per_model=_WEIGHT, switches={"normalize": True}),
    "slerp": Method(shared={"t": Range(0.0, 1.0)}, models=2),
    "task_arithmetic": _task_arithmetic(_WEIGHT, normalize=False, rescale=False),
    "ties": _task_arithmetic(_SPARSE, normalize=True, rescale=False),
    "dare_ties": _task_arithmetic(_SPARSE, normalize=False, rescale=True, random=True),
    "dare_linear": _task_arithmetic(_SPARSE, normalize=False, rescale=True, random=True),
}
