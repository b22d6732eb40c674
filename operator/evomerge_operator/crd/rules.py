"""What the API server checks beyond the schema, in CEL: what may never change, and what fields must be to each other.

The words are those of `evomerge_operator.rules`, which knows all of it and more (a regular expression's syntax). What
is here is refused at `kubectl apply`; the rest becomes a condition.
"""

from evomerge_contract.manifest import BASE, LARGEST_SCALE, SMALLEST_SCALE, SPLITS
from evomerge_contract.methods import SEARCHABLE, so_many_models, without_base
from evomerge_contract.metrics import EVALUATORS
from evomerge_contract.recipe import UNION
from evomerge_operator.crd.cel import Rule, names_in, rule
from evomerge_operator.crd.parameters import PARAMETER_RULES, space_rules
from evomerge_operator.rules import RESERVED_STAGE, REST

NAME_CHARACTERS = 30
_IMMUTABLE = (
    "models",
    "base",
    "tokenizerSource",
    "chatTemplate",
    "configSource",
    "trustRemoteCode",
    "evaluation",
    "stages",
    "export",
)


def _unchanged(field: str) -> Rule:
    """Set, changed and removed are all refused: without has() a removal would pass unseen."""
    return rule(
        f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})",
        f"{field} cannot change once a search has begun: delete this EvoMerge, or make one of another name",
        field=f".{field}",
    )


def _in_s3(what: str, where: str) -> Rule:
    return rule(
        "self.matches('^s3://[^/]+/.')",
        f"{what} must lie at {where}: a cluster reaches no file:// and no relative path",
    )


_MODEL_URI = rule(
    "self.matches('^s3://[^/]+/.') || self.matches('^hf://[^/@]+/[^/@]+(@[^@]+)?$')",
    "a model must lie at s3://bucket/folder or hf://org/name, perhaps with @commit or @branch: "
    "a cluster reaches no file:// and no relative path",
)


_FIRST = "self.stages[0].parameterSpace"
"""Later stages merge winners too: what their pools are is for the operator to check."""
_GIVEN = f"has({_FIRST})"
_NAMED = f"has({_FIRST}.models)"


def _spec() -> list[Rule]:
    with_base = [name for name, method in SEARCHABLE.items() if method.needs_base]
    rules = [_unchanged(field) for field in _IMMUTABLE]
    rules.append(
        rule(
            f"has(self.base) || self.stages.all(s, !has(s.parameterSpace) || "
            f"!(s.parameterSpace.method in {names_in(with_base)}))",
            f"{', '.join(with_base)} need a base; add spec.base or choose {without_base()}",
        )
    )
    rules.append(
        rule(
            f"!has(self.tokenizerSource) || (self.tokenizerSource == '{UNION}' && "
            f"!self.models.exists(m, m.name == '{UNION}')) || (self.tokenizerSource == '{BASE}' && has(self.base)) || "
            f"(self.tokenizerSource != '{UNION}' && self.models.exists(m, m.name == self.tokenizerSource))",
            f"tokenizerSource must be {UNION} (then no model may be called so), {BASE} where there is a base, or the "
            "name of a model",
            field=".tokenizerSource",
        )
    )
    rules.append(
        rule(
            f"!has(self.configSource) || (self.configSource == '{BASE}' && has(self.base)) || "
            "self.models.exists(m, m.name == self.configSource)",
            f"configSource must be {BASE} where there is a base, or the name of a model",
            field=".configSource",
        )
    )
    for name, method in SEARCHABLE.items():
        least, most = method.pool
        if most is not None:
            rules.append(
                rule(
                    f"({least} <= self.models.size() && self.models.size() <= {most}) || "
                    f"!{_GIVEN} || {_NAMED} || {_FIRST}.method != '{name}'",
                    f"{name} merges {so_many_models(least, most)}; the first stage may name them",
                    field=".models",
                )
            )
    rules.append(
        rule(
            f"!{_GIVEN} || {_NAMED} || {_FIRST}.parameters.all(k, "
            f"!{_FIRST}.parameters[k].sumsToOne || "
            f"!has({_FIRST}.parameters[k].min) || !has({_FIRST}.parameters[k].max) || "
            f"(double({_FIRST}.parameters[k].min) * double(self.models.size()) <= 1.0 && "
            f"double({_FIRST}.parameters[k].max) * double(self.models.size()) >= 1.0))",
            "sumsToOne: as many values as there are models cannot sum to one between this min and max",
            field=".stages",
        )
    )
    return rules


_GROUPS = [
    rule(
        "[has(self.layers), has(self.everyLayer), has(self.components), has(self.patterns)].exists_one(given, given)",
        "exactly one of layers, everyLayer, components and patterns is to be given",
    )
]

_CACHE = [
    rule(
        "[has(self.persistentVolumeClaim), has(self.emptyDir), has(self.hostPath)].filter(given, given).size() <= 1",
        "at most one of persistentVolumeClaim, emptyDir and hostPath is to be given",
    )
]


_SCALES = [
    rule(
        f"{SMALLEST_SCALE} <= double(self.min) && double(self.min) <= 1.0",
        f"the smallest scale lies between {SMALLEST_SCALE:g} and 1, the scale that the search starts with",
        field=".min",
    ),
    rule(
        f"1.0 <= double(self.max) && double(self.max) <= {LARGEST_SCALE}",
        f"the largest scale lies between 1, the scale that the search starts with, and {LARGEST_SCALE:g}",
        field=".max",
    ),
    rule("double(self.min) < double(self.max)", "max must be above min", field=".max"),
]


def _distinct(what: str) -> Rule:
    return rule("self.all(a, self.exists_one(b, a.name == b.name))", f"the names of {what} must differ")


def _disjoint() -> list[Rule]:
    pairs = [(a, b) for i, a in enumerate(SPLITS) for b in SPLITS[i + 1 :]]
    return [
        rule(f"self.{a} != self.{b}", f"{b} is the file of {a} too; the three splits must be disjoint", field=f".{b}")
        for a, b in pairs
    ]


EVOMERGE_ROOT = [
    rule(
        f"self.metadata.name.size() <= {NAME_CHARACTERS}",
        f"metadata.name may have at most {NAME_CHARACTERS} characters: the names of Jobs and candidates begin with it",
        field=".metadata.name",
    ),
    rule(
        "!self.metadata.name.contains('.')",
        "metadata.name may have no dot: it becomes a label and a part of other names; use hyphens",
        field=".metadata.name",
    ),
]

_SPACE = "stages[].parameterSpace"
EVOMERGE_SPEC: dict[str, list[Rule]] = {
    "": _spec(),
    "models": [_distinct("models")],
    "models[].name": [rule(f"self != '{BASE}'", f'"{BASE}" means spec.base; choose another name')],
    "models[].uri": [_MODEL_URI],
    "models[].adapter": [_MODEL_URI],
    "base.uri": [_MODEL_URI],
    "base.adapter": [_MODEL_URI],
    "storage.s3.endpoint": [
        rule("self.matches('^https?://[^/]')", "an endpoint begins with https:// or http:// and names a server")
    ],
    "evaluation.objectives": [_distinct("objectives")],
    "evaluation.objectives[].weight": [rule("double(self) > 0.0", "a weight must be above 0")],
    **{f"evaluation.objectives[].{evaluator}": _disjoint() for evaluator in EVALUATORS},
    **{
        f"evaluation.objectives[].{evaluator}.{split}": [_in_s3("items", "s3://bucket/key")]
        for evaluator in EVALUATORS
        for split in SPLITS
    },
    "stages": [_distinct("stages")],
    "stages[].name": [
        rule(f"self != '{RESERVED_STAGE}'", f'"{RESERVED_STAGE}" means the baselines; choose another name')
    ],
    "stages[]": [
        rule(
            "has(self.parameterSpace) != has(self.dataFlowSpace)",
            "exactly one of parameterSpace and dataFlowSpace is to be given",
        )
    ],
    _SPACE: space_rules(),
    f"{_SPACE}.groups": _GROUPS,
    f"{_SPACE}.groups.patterns": [_distinct("patterns")],
    f"{_SPACE}.groups.patterns[].name": [
        rule(f"self != '{REST}'", f'"{REST}" means what no pattern matches; choose another name')
    ],
    f"{_SPACE}.parameters{{}}": PARAMETER_RULES,
    "stages[].dataFlowSpace.scales": _SCALES,
    "stages[].dataFlowSpace.layers": [
        # A default is looked at before its own fields have theirs.
        rule("!has(self.min) || !has(self.max) || self.min <= self.max", "max must not be below min", field=".max"),
    ],
    "worker.cache": _CACHE,
    "export.uri": [_in_s3("an export", "s3://bucket/folder")],
}

CANDIDATE_ROOT = [
    rule(
        "!has(oldSelf.status) || !has(oldSelf.status.outcome) || (has(self.status) && self.status == oldSelf.status)",
        "what a finished candidate came to never changes",
        field=".status",
    )
]
CANDIDATE_SPEC: dict[str, list[Rule]] = {
    "": [
        rule("self == oldSelf", "a candidate never changes once it is made"),
        rule("has(self.name) != has(self.genome)", "a candidate has a genome, a baseline has a name"),
    ],
}
CANDIDATE_STATUS: dict[str, list[Rule]] = {
    "": [
        rule(
            "has(self.fitness) == (has(self.outcome) && self.outcome == 'Succeeded')",
            "a fitness is there exactly when the candidate succeeded",
        ),
    ],
}
