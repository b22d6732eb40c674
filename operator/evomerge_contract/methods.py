"""The merge methods a recipe may name, with mergekit's parameters: what a manifest may search and a recipe may set."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Range:
    """The values a real parameter may take, both ends included; None is unbounded. `whole`: whole numbers only."""

    low: float | None = None
    high: float | None = None
    whole: bool = False


BaseRole = Literal["input", "start", "origin", "optional origin"]
"""What a recipe's base_model is to a method: a model like any other, which may be missing (input); where it sets out
from, towards the one other model (start); what task vectors are taken from (origin), if it is given (optional origin).
"""


@dataclass(frozen=True)
class Method:
    """A published merge method.

    `per_model` and `shared` name the real parameters that shape the result (a value per source, or one for all), which
    a manifest may search; `numerics` those that say how exactly it is computed, one value for all, which only a recipe
    may set; `unused` those that mergekit declares for a model and the method has no use for; `switches` the booleans
    with mergekit's default; `defaults` the values taken when a recipe is silent (a parameter that is in neither must be
    given).

    `least` and `most` are how many sources it merges: without the base, unless that is one like any other.
    `margin` names two per-model parameters: the first, where it lies strictly between 0 and 1, must be further than
    the second from both. `random`: what it does depends on the seed.
    """

    per_model: dict[str, Range] = field(default_factory=dict)
    shared: dict[str, Range] = field(default_factory=dict)
    numerics: dict[str, Range] = field(default_factory=dict)
    unused: dict[str, Range] = field(default_factory=dict)
    switches: dict[str, bool] = field(default_factory=dict)
    defaults: dict[str, float] = field(default_factory=dict)
    base: BaseRole = "input"
    least: int = 0
    most: int | None = None
    margin: tuple[str, str] | None = None
    random: bool = False

    @property
    def real(self) -> dict[str, Range]:
        """The real parameters that shape the result, per model and shared."""
        return self.per_model | self.shared

    @property
    def needs_base(self) -> bool:
        """Whether a manifest must have a base: something that task vectors are taken from."""
        return self.base == "origin"

    @property
    def needs_base_model(self) -> bool:
        """Whether a recipe must have a base_model."""
        return self.base in ("start", "origin")

    @property
    def pool(self) -> tuple[int, int | None]:
        """How many models a manifest that names it may have, at least and at most: one of them is a `start`."""
        more = 1 if self.base == "start" else 0
        return self.least + more, None if self.most is None else self.most + more

    @property
    def searchable(self) -> bool:
        """Whether there is something to search: a real parameter, over the two models or more that a manifest has."""
        most = self.pool[1]
        return bool(self.real) and (most is None or most > 1)


_WEIGHT = {"weight": Range()}
_DENSITY = {"density": Range(0.0, 1.0)}
_EPSILON = {"epsilon": Range(0.0, 1.0)}
_GAMMA = {"gamma": Range(0.0, 1.0)}
_LAMBDA = {"lambda": Range()}
_NOT_NEGATIVE = Range(0.0)
_CHANGED = {"epsilon": Range(0.0, 1.0)}
"""Up to which distance an element counts as not having changed."""


def _task_arithmetic(
    per_model: dict[str, Range],
    *,
    normalize: bool,
    rescale: bool,
    margin: tuple[str, str] | None = None,
    random: bool = False,
) -> Method:
    return Method(
        per_model=per_model,
        shared=_LAMBDA,
        unused={} if "density" in per_model else _DENSITY,
        switches={"normalize": normalize, "rescale": rescale, "int8_mask": False},
        defaults={"density": 1.0, "lambda": 1.0, "epsilon": 0.15, "gamma": 0.01},
        base="origin",
        margin=margin,
        random=random,
    )


def _della(*, normalize: bool) -> Method:
    per_model = _WEIGHT | _DENSITY | _EPSILON
    return _task_arithmetic(per_model, normalize=normalize, rescale=True, margin=("density", "epsilon"), random=True)


_DARE = _task_arithmetic(_WEIGHT | _DENSITY, normalize=False, rescale=True, random=True)
_BREADCRUMBS = _task_arithmetic(_WEIGHT | _DENSITY | _GAMMA, normalize=False, rescale=False)

METHODS: dict[str, Method] = {
    "linear": Method(per_model=_WEIGHT, switches={"normalize": True}),
    "slerp": Method(shared={"t": Range(0.0, 1.0)}, base="start", least=1, most=1),
    "nuslerp": Method(
        per_model=_WEIGHT,
        switches={"nuslerp_row_wise": False, "nuslerp_flatten": True},
        base="optional origin",
        least=2,
        most=2,
    ),
    "multislerp": Method(
        per_model=_WEIGHT,
        numerics={"eps": _NOT_NEGATIVE},
        switches={"normalize_weights": True},
        defaults={"eps": 1e-8},
        base="optional origin",
        least=1,
    ),
    "karcher": Method(
        numerics={"max_iter": Range(0, whole=True), "tol": _NOT_NEGATIVE}, defaults={"max_iter": 10, "tol": 1e-5}
    ),
    "task_arithmetic": _task_arithmetic(_WEIGHT, normalize=False, rescale=False),
    "ties": _task_arithmetic(_WEIGHT | _DENSITY, normalize=True, rescale=False),
    "dare_ties": _DARE,
    "dare_linear": _DARE,
    "della": _della(normalize=True),
    "della_linear": _della(normalize=False),
    "breadcrumbs": _BREADCRUMBS,
    "breadcrumbs_ties": _BREADCRUMBS,
    "model_stock": Method(switches={"filter_wise": False}, base="origin", least=2),
    "sce": Method(
        shared={"select_topk": Range(0.0, 1.0)},
        switches={"int8_mask": False},
        defaults={"select_topk": 1.0},
        base="origin",
    ),
    "ram": Method(shared=_CHANGED, defaults={"epsilon": 1e-5}, base="origin"),
    "ramplus_tl": Method(
        shared={"r": Range(), "alpha": _NOT_NEGATIVE} | _CHANGED,
        defaults={"r": 0.1, "alpha": 0.2, "epsilon": 1e-5},
        base="origin",
    ),
    "nearswap": Method(shared={"t": _NOT_NEGATIVE}, base="start", least=1, most=1),
    "arcee_fusion": Method(base="start", least=1, most=1),
    "passthrough": Method(
        per_model={"scale": Range(), "scale_origin": Range()}, defaults={"scale": 1.0, "scale_origin": 0.0}, most=1
    ),
}

EXTENSIONS = frozenset({"scale_origin"})
"""Parameters that mergekit does not have: it would pass over them, and merge something else."""

SEARCHABLE: dict[str, Method] = {name: method for name, method in METHODS.items() if method.searchable}
"""The methods that a manifest may name."""


def so_many_models(least: int, most: int | None) -> str:
    """Bounds in words: exactly 2 models, at least 2 models, at most 1 model."""
    if most is None:
        return f"at least {_models(least)}"
    return f"exactly {_models(most)}" if least == most else f"at most {_models(most)}"


def _models(count: int) -> str:
    return "1 model" if count == 1 else f"{count} models"


def without_base() -> str:
    """The methods that a manifest may name without giving a base, as a text."""
    return any_of([name for name, method in SEARCHABLE.items() if not method.needs_base])


def any_of(names: Sequence[str]) -> str:
    """Names to choose from: a, b or c."""
    others, comma, last = ", ".join(names).rpartition(", ")
    return f"{others} or {last}" if comma else last
