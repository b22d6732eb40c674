"""Baselines: what the winner is compared with, by name.

A name never changes its meaning: a run that is pinned to a list of names has the same recipes in every version.
"""

from collections.abc import Callable, Sequence

from evomerge_contract.manifest import BASE, EvoMergeSpec
from evomerge_contract.recipe import DTypeName, Parameters, Recipe, RecipeModel
from evomerge_contract.task import Baseline

PLAIN_AVERAGE = "plain average"
TASK_ARITHMETIC = "task arithmetic"
DEFAULT_DARE_TIES = "default DARE-TIES"


def default_baselines(spec: EvoMergeSpec) -> list[str]:
    """The names that a run which begins now is pinned to.

    Each source alone, their plain average and, where there is a base, task arithmetic, a default DARE-TIES and the base
    itself.
    """
    with_base = [TASK_ARITHMETIC, DEFAULT_DARE_TIES, BASE] if spec.base is not None else []
    return [m.name for m in spec.models] + [PLAIN_AVERAGE, *with_base]


def _older_baselines(spec: EvoMergeSpec) -> list[str]:
    """Those of a run that was begun before baselines were pinned."""
    return [name for name in default_baselines(spec) if name != TASK_ARITHMETIC]


def baselines(spec: EvoMergeSpec, dtype: DTypeName, names: Sequence[str] | None) -> list[Baseline]:
    """The baselines of these names, in this order; without names those of a run from before they were pinned.

    What is merged has the vocabulary, chat template and config of the search; a model alone keeps its own.

    Raises:
        ValueError: there is no baseline of a name.
    """
    sources = {m.name for m in spec.models}
    found = []
    for name in _older_baselines(spec) if names is None else names:
        if name in sources:
            found.append(Baseline(name=name, role="source", recipe=alone(name, dtype)))
        elif name in _MADE:
            found.append(_MADE[name](spec, dtype))
        else:
            known = ", ".join(default_baselines(spec))
            raise ValueError(f'there is no baseline "{name}"; known: {known}')
    return found


def _plain_average(spec: EvoMergeSpec, dtype: DTypeName) -> Baseline:
    return Baseline(name=PLAIN_AVERAGE, role="average", recipe=_merged("linear", spec, {"weight": 1.0}, None, dtype))


def _task_arithmetic(spec: EvoMergeSpec, dtype: DTypeName) -> Baseline:
    """The base and all task vectors, each as it is: with a weight of 1/n they would make the plain average.

    Of six methods the only one that reliably gained on language models (arXiv 2511.21437).
    """
    recipe = _merged("task_arithmetic", spec, {"weight": 1.0}, BASE, dtype)
    return Baseline(name=TASK_ARITHMETIC, role="default", recipe=recipe)


def _default_dare_ties(spec: EvoMergeSpec, dtype: DTypeName) -> Baseline:
    recipe = _merged("dare_ties", spec, {"weight": 0.5, "density": 0.5}, BASE, dtype)
    return Baseline(name=DEFAULT_DARE_TIES, role="default", recipe=recipe)


def _base_alone(_spec: EvoMergeSpec, dtype: DTypeName) -> Baseline:
    return Baseline(name=BASE, role="base", recipe=alone(BASE, dtype))


_MADE: dict[str, Callable[[EvoMergeSpec, DTypeName], Baseline]] = {
    PLAIN_AVERAGE: _plain_average,
    TASK_ARITHMETIC: _task_arithmetic,
    DEFAULT_DARE_TIES: _default_dare_ties,
    BASE: _base_alone,
}


def _merged(method: str, spec: EvoMergeSpec, each: Parameters, base: str | None, dtype: DTypeName) -> Recipe:
    """All sources merged, each with the same parameters."""
    return Recipe(
        merge_method=method,
        models=[RecipeModel(model=m.name, parameters=each) for m in spec.models],
        base_model=base,
        dtype="float32",
        out_dtype=dtype,
        tokenizer_source=spec.tokenizer_source,
        chat_template=spec.chat_template,
        config_source=spec.config_source,
    )


def alone(model: str, dtype: DTypeName) -> Recipe:
    """One model as it is."""
    return Recipe(
        merge_method="linear",
        models=[RecipeModel(model=model, parameters={"weight": 1.0})],
        dtype="float32",
        out_dtype=dtype,
    )
