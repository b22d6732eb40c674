"""What a manifest's fields must be to each other: rules that a schema cannot say."""

import re
from collections.abc import Iterator, Sequence
from itertools import combinations

from evomerge_contract.manifest import (
    BASE,
    LARGEST_SCALE,
    SMALLEST_SCALE,
    SPLITS,
    Cache,
    DataFlowSpace,
    EvoMergeSpec,
    Groups,
    Objective,
    Parameter,
    ParameterSpace,
    Scales,
)
from evomerge_contract.methods import METHODS, SEARCHABLE, Method, any_of, so_many_models, without_base
from evomerge_contract.metrics import EVALUATORS, METRICS, metrics_of
from evomerge_contract.recipe import UNION
from evomerge_contract.report import Problem
from evomerge_contract.spelling import nearest

REST = "rest"
"""The group of the tensors that no pattern matches."""
RESERVED_STAGE = "baselines"
"""The baselines' own index sequence in the log."""


def broken_rules(spec: EvoMergeSpec) -> list[Problem]:
    """Every rule that the spec breaks, with field path and what is allowed."""
    found = [*_models(spec), *_evaluation(spec), *_cache(spec.worker.cache)]
    for index, stage in enumerate(spec.stages):
        found += _stage_name(spec, index)
        if len(stage.spaces) != 1:
            said = f"names {len(stage.spaces)} spaces; exactly one is allowed: parameterSpace, dataFlowSpace"
            found.append((f"spec.stages[{index}]", said))
            continue
        found += _pool(spec, index)
        if stage.parameter_space is not None:
            found += _space(f"spec.stages[{index}].parameterSpace", stage.parameter_space, spec, spec.pool(index))
        if stage.data_flow_space is not None:
            found += _data_flow(f"spec.stages[{index}].dataFlowSpace", stage.data_flow_space)
    return [Problem(path=path, message=message) for path, message in found]


_Found = Iterator[tuple[str, str]]


def _stage_name(spec: EvoMergeSpec, number: int) -> _Found:
    name, path = spec.stages[number].name, f"spec.stages[{number}].name"
    earlier = next((i for i, stage in enumerate(spec.stages[:number]) if stage.name == name), None)
    model = next((i for i, model in enumerate(spec.models) if model.name == name), None)
    if name == RESERVED_STAGE:
        yield path, f'"{name}" means the baselines; choose another name'
    elif name == BASE and len(spec.stages) > 1:
        yield path, f'"{name}" means spec.base; choose another name'
    elif earlier is not None:
        yield path, f'"{name}" is also the name of spec.stages[{earlier}]; names must differ'
    elif model is not None and len(spec.stages) > 1:
        yield path, f'"{name}" is also the name of spec.models[{model}], and later stages know its winner by it'


def _pool(spec: EvoMergeSpec, number: int) -> _Found:
    """The models that a stage names: those of the manifest, and winners of the stages before it."""
    models = [model.name for model in spec.models]
    earlier, later = ([stage.name for stage in part] for part in (spec.stages[:number], spec.stages[number:]))
    (field, space), *_ = spec.stages[number].spaces.items()
    named = space.models or []
    for index, name in enumerate(named):
        path = f"spec.stages[{number}].{field}.models[{index}]"
        if name in named[:index]:
            again = "to lay its layers in a row again, use repeats" if field == "dataFlowSpace" else "names must differ"
            yield path, f'"{name}" is named twice; {again}'
        elif name in models or name in earlier:
            continue
        elif name in later:
            order = "the stage itself" if name == spec.stages[number].name else "a later stage"
            yield path, f'"{name}" is {order}; a stage has models and the winners of stages before it'
        else:
            yield path, f'"{name}" is not known; allowed: {", ".join([*models, *earlier])}'


def _models(spec: EvoMergeSpec) -> _Found:
    first: dict[str, int] = {}
    for index, model in enumerate(spec.models):
        if model.name == BASE:
            yield f"spec.models[{index}].name", f'"{BASE}" means spec.base; choose another name'
        if model.name in first:
            yield (
                f"spec.models[{index}].name",
                f'"{model.name}" is also the name of spec.models[{first[model.name]}]; names must differ',
            )
        first.setdefault(model.name, index)
    yield from _vocabulary(spec)
    yield from _config(spec)


def _config(spec: EvoMergeSpec) -> _Found:
    wanted, names = spec.config_source, [model.name for model in spec.models]
    if wanted == BASE and spec.base is None:
        yield "spec.configSource", f'"{BASE}" means spec.base, which is not there; add it or name a model'
    elif wanted not in (None, BASE, *names):
        allowed = ", ".join([*([BASE] if spec.base else []), *names])
        yield "spec.configSource", f'"{wanted}" is not known; allowed: {allowed}'


def _vocabulary(spec: EvoMergeSpec) -> _Found:
    wanted, names = spec.tokenizer_source, [model.name for model in spec.models]
    if wanted == UNION and UNION in names:
        yield "spec.tokenizerSource", f'"{UNION}" means the tokens of all models, and is the name of one; rename it'
    elif wanted == BASE and spec.base is None:
        yield "spec.tokenizerSource", f'"{BASE}" means spec.base, which is not there; add it or name a model'
    elif wanted not in (None, UNION, BASE, *names):
        allowed = ", ".join([UNION, *([BASE] if spec.base else []), *names])
        yield "spec.tokenizerSource", f'"{wanted}" is not known; allowed: {allowed}'


def _evaluation(spec: EvoMergeSpec) -> _Found:
    names: set[str] = set()
    for index, objective in enumerate(spec.evaluation.objectives):
        path = f"spec.evaluation.objectives[{index}]"
        if objective.name in names:
            yield f"{path}.name", f'"{objective.name}" is the name of an earlier objective; names must differ'
        names.add(objective.name)
        if float(objective.weight) <= 0:
            yield f"{path}.weight", f'"{objective.weight}" must be above 0'
        given = objective.evaluators
        if len(given) != 1:
            yield path, f"names {len(given)} evaluators; exactly one is allowed: {', '.join(EVALUATORS)}"
        else:
            yield from _metric(f"{path}.metric", objective, own_tokens=spec.tokenizer_source is not None)
        if objective.extract is not None:
            yield from _regex(f"{path}.extract", objective.extract)
        for name, evaluator in given.items():
            for a, b in combinations(SPLITS, 2):
                if evaluator.uris[a] == evaluator.uris[b]:
                    yield f"{path}.{name}.{b}", f"is the file of {a} too; the three splits must be disjoint"


def _metric(path: str, objective: Objective, *, own_tokens: bool) -> _Found:
    """`own_tokens`: each source keeps the tokens it has, so that figures per token cannot be compared."""
    metric, evaluator = METRICS[objective.metric], objective.evaluator_name
    if evaluator not in metric.evaluators:
        yield path, f"{objective.metric} is no metric of {evaluator}; choose {any_of(metrics_of(evaluator))}"
    elif metric.per_token and own_tokens:
        yield (
            path,
            f"{objective.metric} is a figure per token, and beside tokenizerSource the sources keep their own tokens: "
            f"nothing could be compared with them; choose {any_of(metrics_of(evaluator, per_token=False))}",
        )


def _cache(cache: Cache) -> _Found:
    given = [name for name in Cache.model_fields if getattr(cache, name) is not None]
    if len(given) > 1:
        allowed = "at most one of persistentVolumeClaim, emptyDir and hostPath is allowed"
        yield "spec.worker.cache", f"gives {len(given)} places; {allowed}"


def _space(path: str, space: ParameterSpace, spec: EvoMergeSpec, pool: Sequence[str]) -> _Found:
    yield from _groups(f"{path}.groups", space.groups)
    method = SEARCHABLE.get(space.method)
    if method is None:
        said = "has nothing to search, only a recipe can name it" if space.method in METHODS else "is not known"
        near = None if space.method in METHODS else nearest(space.method, SEARCHABLE)
        meant = f"did you mean {near}?" if near else f"allowed: {', '.join(SEARCHABLE)}"
        yield f"{path}.method", f'"{space.method}" {said}; {meant}'
        for name, parameter in space.parameters.items():
            yield from _bounds(f"{path}.parameters.{name}", parameter)
        return
    if method.needs_base and spec.base is None:
        yield "spec.base", f"{space.method} needs a base; add spec.base or choose {without_base()}"
    least, most = method.pool
    if len(pool) < least or (most is not None and len(pool) > most):
        all_models = len(pool) == len(spec.models) and space.models is None
        where = "spec.models" if all_models else f"{path}.models"
        yield where, f"{space.method} merges {so_many_models(least, most)}, not {len(pool)}"
    for name, parameter in space.parameters.items():
        yield from _parameter(f"{path}.parameters.{name}", name, parameter, method, len(pool))
    for name in method.real:
        if name not in space.parameters and name not in method.defaults:
            yield f"{path}.parameters.{name}", f"is missing; {space.method} needs it (min and max, or value)"
    yield from _margin(path, space, method)
    if all(p.value is not None for p in space.parameters.values()):
        yield f"{path}.parameters", "are all fixed: nothing is left to search; give at least one min and max"


def _groups(path: str, groups: Groups) -> _Found:
    given = [name for name in Groups.model_fields if getattr(groups, name) is not None]
    if len(given) != 1:
        said = f"gives {len(given)} ways of grouping" if given else "gives no way of grouping"
        yield path, f"{said}; exactly one of layers, everyLayer, components and patterns is allowed"
    names: set[str] = set()
    for index, pattern in enumerate(groups.patterns or []):
        yield from _regex(f"{path}.patterns[{index}].regex", pattern.regex)
        if pattern.name == REST:
            yield f"{path}.patterns[{index}].name", f'"{REST}" means what no pattern matches; choose another name'
        if pattern.name in names:
            yield f"{path}.patterns[{index}].name", f'"{pattern.name}" names two patterns; names must differ'
        names.add(pattern.name)


def _parameter(path: str, name: str, parameter: Parameter, method: Method, models: int) -> _Found:
    if name in method.switches:
        if parameter.value not in ("true", "false"):
            yield path, 'is a switch: give value "true" or "false"'
        return
    if name not in method.real:
        known = ", ".join([*method.real, *method.switches])
        yield path, f"is not a parameter of this method; allowed: {known}"
        return
    if parameter.value is not None:
        yield from _fixed(path, name, parameter, method)
        return
    if parameter.min is None or parameter.max is None:
        missing = " and ".join(n for n in ("min", "max") if getattr(parameter, n) is None)
        yield path, f"{missing} is missing; give min and max, or value"
        return
    crossed = list(_bounds(path, parameter))
    if crossed:
        yield from crossed
        return
    for field in ("min", "max"):
        yield from _in_range(f"{path}.{field}", name, getattr(parameter, field), method)
    yield from _start(path, parameter)
    if parameter.sums_to_one:
        yield from _sum(path, name, parameter, method, models)


def _bounds(path: str, parameter: Parameter) -> _Found:
    if parameter.min is not None and parameter.max is not None and float(parameter.min) >= float(parameter.max):
        yield f"{path}.max", f'"{parameter.max}" must be above min "{parameter.min}"'


def _fixed(path: str, name: str, parameter: Parameter, method: Method) -> _Found:
    for field in ("min", "max", "start"):
        if getattr(parameter, field) is not None:
            yield f"{path}.{field}", "has no meaning beside value; a parameter is fixed or searched, not both"
    if parameter.sums_to_one:
        yield f"{path}.sumsToOne", "has no meaning beside value"
    if parameter.value in ("true", "false"):
        yield f"{path}.value", f'"{parameter.value}" is not a number'
    else:
        yield from _in_range(f"{path}.value", name, str(parameter.value), method)


def _in_range(path: str, name: str, text: str, method: Method) -> _Found:
    allowed = method.real[name]
    if allowed.high is not None and float(text) > allowed.high:
        yield path, f'"{text}" is above {allowed.high:g}, the largest {name}'
    if allowed.low is not None and float(text) < allowed.low:
        yield path, f'"{text}" is below {allowed.low:g}, the smallest {name}'


def _start(path: str, parameter: Parameter) -> _Found:
    if parameter.start is None:
        return
    if not float(parameter.min or 0) <= float(parameter.start) <= float(parameter.max or 0):
        yield f"{path}.start", f'"{parameter.start}" is not between min "{parameter.min}" and max "{parameter.max}"'


def _sum(path: str, name: str, parameter: Parameter, method: Method, models: int) -> _Found:
    low, high = float(parameter.min or 0), float(parameter.max or 0)
    if name not in method.per_model:
        yield f"{path}.sumsToOne", f"{name} is one value for all models; only per-model parameters can sum to one"
    elif not models * low <= 1 <= models * high:
        yield f"{path}.sumsToOne", f"{models} values between {low:g} and {high:g} cannot sum to one"


def _margin(path: str, space: ParameterSpace, method: Method) -> _Found:
    """della keeps its elements with probabilities that spread by epsilon to both sides of the density."""
    if method.margin is None:
        return
    name, other = method.margin
    low, high = _reach(name, space, method)
    _, margin = _reach(other, space, method)
    if not (low == high and low in (0, 1)) and not (margin < low and high < 1 - margin):
        yield (
            f"{path}.parameters.{name}",
            f"must lie between {margin:g} and {1 - margin:g}, these two excluded: {other} reaches {margin:g}, and "
            f"{name} - {other} must be above 0, {name} + {other} below 1",
        )


def _reach(name: str, space: ParameterSpace, method: Method) -> tuple[float, float]:
    """The smallest and the largest value of a parameter that has a default; what is no number counts as the default."""
    parameter = space.parameters.get(name, Parameter())
    texts = (parameter.value or parameter.min, parameter.value or parameter.max)
    low, high = (method.defaults[name] if text in (None, "true", "false") else float(text or 0) for text in texts)
    return low, high


def _data_flow(path: str, space: DataFlowSpace) -> _Found:
    if space.scales is not None:
        yield from _scales(f"{path}.scales", space.scales)
    if space.layers.min > space.layers.max:
        yield f"{path}.layers.max", f"{space.layers.max} must not be below min {space.layers.min}"


def _scales(path: str, scales: Scales) -> _Found:
    low, high = float(scales.min), float(scales.max)
    if low < SMALLEST_SCALE:
        yield f"{path}.min", f'"{scales.min}" is below {SMALLEST_SCALE:g}, the smallest scale'
    elif low > 1:
        yield f"{path}.min", f'"{scales.min}" is above 1, the scale that the search starts with'
    if high > LARGEST_SCALE:
        yield f"{path}.max", f'"{scales.max}" is above {LARGEST_SCALE:g}, the largest scale'
    elif high < 1:
        yield f"{path}.max", f'"{scales.max}" is below 1, the scale that the search starts with'
    elif low == high:
        yield f"{path}.max", f'"{scales.max}" must be above min "{scales.min}"'


def _regex(path: str, text: str) -> _Found:
    try:
        re.compile(text)
    except re.error as error:
        yield path, f'"{text}" is not a regular expression: {error}'
