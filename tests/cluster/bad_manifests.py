"""A good manifest that uses every field, and for each rule of the CRDs a change of it that breaks that rule alone."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge_contract.methods import SEARCHABLE

Document = dict[str, Any]
Changes = Mapping[str, Any]
"""New values by place: `spec.models.0.uri`; GONE removes."""
GONE = object()
DIGEST = "sha256:" + "0" * 64


def good_evomerge(namespace: str, name: str = "good") -> Document:
    """An EvoMerge with every optional field."""
    jsonl = {split: f"s3://data/{split}.jsonl" for split in ("search", "select", "test")}
    return {
        "apiVersion": "evomerge.dev/v1alpha1",
        "kind": "EvoMerge",
        "metadata": {"name": name, "namespace": namespace, "labels": {"team": "merge"}},
        "spec": {
            "models": [
                {"name": "one", "uri": "s3://models/one", "adapter": "s3://models/adapter", "license": "mit"},
                {"name": "two", "uri": "hf://org/two@" + "a" * 40, "license": "apache-2.0"},
            ],
            "base": {"uri": "s3://models/base", "adapter": "s3://models/adapter", "license": "apache-2.0"},
            "tokenizerSource": "union",
            "configSource": "one",
            "trustRemoteCode": True,
            "storage": {
                "s3": {
                    "endpoint": "https://s3.example.com",
                    "region": "eu-central-1",
                    "pathStyle": True,
                    "secretName": "s3-credentials",
                    "caConfigMap": "ca",
                },
                "huggingFace": {"secretName": "hub"},
            },
            "evaluation": {
                "objectives": [
                    {
                        "name": "sums",
                        "jsonl": jsonl,
                        "metric": "exact_match",
                        "weight": "0.5",
                        "maxNewTokens": 8,
                        "extract": "[0-9]+",
                        "chatTemplate": False,
                    }
                ],
                "batchSize": 16,
                "threads": 2,
            },
            "stages": [
                {
                    "name": "ps",
                    "parameterSpace": {
                        "method": "linear",
                        "groups": {"patterns": [{"name": "mlp", "regex": "mlp"}, {"name": "norms", "regex": "norm"}]},
                        "parameters": {
                            "weight": {"min": "-0.5", "max": "1.5", "start": "0.5", "sumsToOne": True},
                            "normalize": {"value": "true"},
                        },
                    },
                    "search": {"algorithm": "CMA-ES", "candidates": 9, "seed": 3, "population": 4, "lag": 2},
                }
            ],
            "parallelism": 2,
            "budget": {"failures": 1, "disruptions": 2, "deadline": "7d"},
            "worker": {
                "timeoutSeconds": 60,
                "startSeconds": 60,
                "image": "registry.example.com/worker:1",
                "resources": {"limits": {"nvidia.com/gpu": "1", "memory": "4Gi"}, "requests": {"cpu": "500m"}},
                "candidatesPerPod": 4,
                "cache": {"persistentVolumeClaim": {"claimName": "weights"}},
                "podTemplate": {
                    "metadata": {"labels": {"kueue.x-k8s.io/queue-name": "q"}, "annotations": {"a": "b"}},
                    "spec": {"tolerations": [{"operator": "Exists"}]},
                },
            },
            "export": {"uri": "s3://out/good"},
            "suspend": True,
            "ttlSecondsAfterFinished": 60,
        },
    }


def good_candidate(namespace: str, name: str = "good-ps-00000") -> Document:
    """A MergeCandidate as the operator makes it."""
    return {
        "apiVersion": "evomerge.dev/v1alpha1",
        "kind": "MergeCandidate",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "stage": "ps",
            "index": 0,
            "generation": 0,
            "genome": "0.5,-0.25",
            "algorithm": "GA/1",
            "recipeDigest": DIGEST,
        },
    }


def changed(document: Document, changes: Changes) -> Document:
    """A copy with the changes made."""
    document = copy.deepcopy(document)
    for place, value in changes.items():
        *parents, last = place.split(".")
        holder: Any = document
        for part in parents:
            holder = holder[int(part) if isinstance(holder, list) else part]
        key = int(last) if isinstance(holder, list) else last
        if value is GONE:
            del holder[key]
        else:
            holder[key] = value
    return document


@dataclass(frozen=True)
class Case:
    """How to break one rule.

    `place` is the schema's, items and values as `[]`; `message` the rule's own; `says` what is said instead where the
    rule makes its words; `besides` what else is said of the same mistake.
    """

    place: str
    message: str
    changes: Changes
    says: str = ""
    besides: Sequence[str] = ()

    def __str__(self) -> str:
        return f"{self.place}: {self.says or self.message}"


_STAGE = "spec.stages.0.parameterSpace"
_PLACE = "spec.stages[].parameterSpace"
_PARAMETERS = f"{_PLACE}.parameters"
_SMALLEST_SCALE = "the smallest scale lies between 0.05 and 1, the scale that the search starts with"
_LARGEST_SCALE = "the largest scale lies between 1, the scale that the search starts with, and 8"
_ONE = f"{_PARAMETERS}[]"
_FREE = {"min": "0", "max": "1"}
_TASK_ARITHMETIC = "task_arithmetic, ties, dare_ties, dare_linear, della, della_linear, breadcrumbs, breadcrumbs_ties"
_THREE = [{"name": name, "uri": f"s3://models/{name}"} for name in ("one", "two", "three")]
_SHARED = "lambda, normalize, rescale, int8_mask"
_DISJOINT = "the three splits must be disjoint"
_OBJECTIVE = "spec.evaluation.objectives.0"
_NO_MODEL = (
    "a model must lie at s3://bucket/folder or hf://org/name, perhaps with @commit or @branch: "
    "a cluster reaches no file:// and no relative path"
)
_NO_ITEMS = "items must lie at s3://bucket/key: a cluster reaches no file:// and no relative path"
_BOTH = "min, max, start and sumsToOne have no meaning beside value; a parameter is fixed or searched, not both"


def _flow(space: Document) -> Changes:
    """The stage with a data-flow space instead."""
    return {_STAGE: GONE, "spec.stages.0.dataFlowSpace": space}


def _with(method: str, **parameters: Any) -> Changes:
    return {f"{_STAGE}.method": method, f"{_STAGE}.parameters": parameters}


CREATED: list[Case] = [
    Case(
        "metadata.name",
        "metadata.name may have at most 30 characters: the names of Jobs and candidates begin with it",
        {"metadata.name": "a" * 31},
    ),
    Case(
        "metadata.name",
        "metadata.name may have no dot: it becomes a label and a part of other names; use hyphens",
        {"metadata.name": "a.b"},
    ),
    Case(
        "spec",
        f"{_TASK_ARITHMETIC}, sce, ram, ramplus_tl need a base; "
        "add spec.base or choose linear, slerp, nuslerp, multislerp or nearswap",
        {"spec.base": GONE, **_with("ties", weight=_FREE)},
    ),
    *(
        Case(
            "spec.models",
            f"{method} merges exactly 2 models; the first stage may name them",
            {"spec.models": _THREE, **_with(method, **{parameter: _FREE})},
        )
        for method, parameter in (("slerp", "t"), ("nuslerp", "weight"), ("nearswap", "t"))
    ),
    Case(
        "spec.stages",
        "sumsToOne: as many values as there are models cannot sum to one between this min and max",
        {f"{_STAGE}.parameters.weight": {"min": "0.6", "max": "1", "sumsToOne": True}},
    ),
    *(
        Case(
            "spec.tokenizerSource",
            "tokenizerSource must be union (then no model may be called so), base where there is a base, or the name "
            "of a model",
            changes,
        )
        for changes in (
            {"spec.tokenizerSource": "three"},
            {"spec.tokenizerSource": "base", "spec.base": GONE},
            {"spec.models.1.name": "union"},
        )
    ),
    *(
        Case("spec.configSource", "configSource must be base where there is a base, or the name of a model", changes)
        for changes in ({"spec.configSource": "three"}, {"spec.configSource": "base", "spec.base": GONE})
    ),
    Case("spec.models", "the names of models must differ", {"spec.models.1.name": "one"}),
    Case("spec.models[].name", '"base" means spec.base; choose another name', {"spec.models.1.name": "base"}),
    *(
        Case("spec.models[].uri", _NO_MODEL, {"spec.models.1.uri": uri})
        for uri in ("models/two", "file:///models/two", "s3://models", "hf://two", "hf://org/two@a@b")
    ),
    Case("spec.base.uri", _NO_MODEL, {"spec.base.uri": "/models/base"}),
    Case("spec.models[].adapter", _NO_MODEL, {"spec.models.1.adapter": "file:///models/adapter"}),
    Case("spec.base.adapter", _NO_MODEL, {"spec.base.adapter": "adapters/base"}),
    Case(
        "spec.storage.s3.endpoint",
        "an endpoint begins with https:// or http:// and names a server",
        {"spec.storage.s3.endpoint": "s3.example.com"},
    ),
    Case(
        "spec.evaluation.objectives",
        "the names of objectives must differ",
        {"spec.evaluation.objectives": [good_evomerge("")["spec"]["evaluation"]["objectives"][0]] * 2},
    ),
    Case("spec.evaluation.objectives[].weight", "a weight must be above 0", {f"{_OBJECTIVE}.weight": "0"}),
    *(
        Case(
            f"spec.evaluation.objectives[].jsonl.{second}",
            f"{second} is the file of {first} too; {_DISJOINT}",
            {f"{_OBJECTIVE}.jsonl.{second}": f"s3://data/{first}.jsonl"},
        )
        for first, second in (("search", "select"), ("search", "test"), ("select", "test"))
    ),
    *(
        Case(f"spec.evaluation.objectives[].jsonl.{split}", _NO_ITEMS, {f"{_OBJECTIVE}.jsonl.{split}": uri})
        for split, uri in (("search", "search.jsonl"), ("select", "s3://data"), ("test", "hf://org/data"))
    ),
    Case(
        "spec.stages",
        "the names of stages must differ",
        {"spec.stages": good_evomerge("")["spec"]["stages"] * 2},
    ),
    Case(
        "spec.stages[].name",
        '"baselines" means the baselines; choose another name',
        {"spec.stages.0.name": "baselines"},
    ),
    Case(
        f"{_PLACE}.groups",
        "exactly one of layers, everyLayer, components and patterns is to be given",
        {f"{_STAGE}.groups": {"layers": 2, "components": True}},
    ),
    Case(
        f"{_PLACE}.groups",
        "exactly one of layers, everyLayer, components and patterns is to be given",
        {f"{_STAGE}.groups": {}},
    ),
    *(
        Case("spec.stages[]", "exactly one of parameterSpace and dataFlowSpace is to be given", changes)
        for changes in ({"spec.stages.0.dataFlowSpace": {}}, {_STAGE: GONE})
    ),
    *(
        Case(f"spec.stages[].dataFlowSpace.{part}", message, _flow({part.partition(".")[0]: value}))
        for part, message, value in (
            ("scales.min", _SMALLEST_SCALE, {"min": "0.049999"}),
            ("scales.min", _SMALLEST_SCALE, {"min": "1.1"}),
            ("scales.max", _LARGEST_SCALE, {"max": "0.9"}),
            ("scales.max", _LARGEST_SCALE, {"max": "8.1"}),
            ("scales.max", "max must be above min", {"min": "1", "max": "1"}),
            ("layers.max", "max must not be below min", {"min": 5, "max": 4}),
        )
    ),
    Case(
        f"{_PLACE}.groups.patterns",
        "the names of patterns must differ",
        {f"{_STAGE}.groups.patterns.1.name": "mlp"},
    ),
    Case(
        f"{_PLACE}.groups.patterns[].name",
        '"rest" means what no pattern matches; choose another name',
        {f"{_STAGE}.groups.patterns.1.name": "rest"},
    ),
    *(
        Case(_PARAMETERS, f"{methods}: the parameters allowed are {allowed}", _with(method, **needed, wieght=_FREE))
        for methods, method, allowed, needed in (
            ("linear", "linear", "weight, normalize", {"weight": _FREE}),
            ("slerp, nearswap", "slerp", "t", {"t": _FREE}),
            ("nuslerp", "nuslerp", "weight, nuslerp_row_wise, nuslerp_flatten", {"weight": _FREE}),
            ("multislerp", "multislerp", "weight, normalize_weights", {"weight": _FREE}),
            ("task_arithmetic", "task_arithmetic", f"weight, {_SHARED}", {"weight": _FREE}),
            ("ties, dare_ties, dare_linear", "dare_ties", f"weight, density, {_SHARED}", {"weight": _FREE}),
            ("della, della_linear", "della", f"weight, density, epsilon, {_SHARED}", {"weight": _FREE}),
            ("breadcrumbs, breadcrumbs_ties", "breadcrumbs", f"weight, density, gamma, {_SHARED}", {"weight": _FREE}),
            ("sce", "sce", "select_topk, int8_mask", {"select_topk": _FREE}),
            ("ram", "ram", "epsilon", {"epsilon": _FREE}),
            ("ramplus_tl", "ramplus_tl", "r, alpha, epsilon", {"r": _FREE}),
        )
    ),
    Case(
        _PARAMETERS,
        f"linear, nuslerp, multislerp, {_TASK_ARITHMETIC}: "
        "the parameter weight is missing (give min and max, or value)",
        _with("dare_ties", density=_FREE),
    ),
    Case(
        _PARAMETERS,
        "slerp, nearswap: the parameter t is missing (give min and max, or value)",
        _with("slerp", weight=_FREE),
        besides=["slerp, nearswap: the parameters allowed are t"],
    ),
    Case(
        _PARAMETERS,
        "t is below 0, the smallest t",
        _with("slerp", t={"min": "-0.1", "max": "1"}),
    ),
    Case(_PARAMETERS, "t is above 1, the largest t", _with("slerp", t={"min": "0", "max": "1.1"})),
    Case(_PARAMETERS, "alpha is below 0, the smallest alpha", _with("ramplus_tl", alpha={"min": "-0.1", "max": "1"})),
    *(
        Case(_PARAMETERS, f"{name} is {words} {name}", _with(method, **{name: bounds}, **needed))
        for name, method, needed in (
            ("density", "ties", {"weight": _FREE}),
            ("epsilon", "della", {"weight": _FREE}),
            ("gamma", "breadcrumbs", {"weight": _FREE}),
            ("select_topk", "sce", {}),
        )
        for bounds, words in (
            ({"min": "-0.5", "max": "1"}, "below 0, the smallest"),
            ({"min": "0", "max": "1.5"}, "above 1, the largest"),
        )
    ),
    *(
        Case(_PARAMETERS, f"density is {words} density", _with("ties", weight=_FREE, density={"value": value}))
        for value, words in (("-0.5", "below 0, the smallest"), ("1.5", "above 1, the largest"))
    ),
    Case(
        _PARAMETERS,
        "int8_mask, normalize, normalize_weights, nuslerp_flatten, nuslerp_row_wise, rescale are switches: "
        'give value "true" or "false"',
        _with("linear", weight=_FREE, normalize={"value": "1"}),
    ),
    Case(
        _PARAMETERS,
        'a parameter that is no switch takes a number as its value, not "true" or "false"',
        _with("ties", weight=_FREE, density={"value": "true"}),
    ),
    Case(
        _PARAMETERS,
        "only per-model parameters (density, epsilon, gamma, weight) can sum to one; the others have one value",
        _with("ties", weight=_FREE, **{"lambda": {**_FREE, "sumsToOne": True}}),
    ),
    Case(
        _PARAMETERS,
        "all parameters are fixed: nothing is left to search; give at least one min and max",
        _with("linear", weight={"value": "0.5"}),
    ),
    *(
        Case(_ONE, _BOTH, _with("ties", weight=_FREE, density={"value": "0.5", **beside}))
        for beside in (_FREE, {"start": "1"}, {"sumsToOne": True})
    ),
    Case(_ONE, "min or max is missing; give min and max, or value", _with("linear", weight={"min": "0"})),
    Case(
        _ONE,
        "max must be above min",
        _with("linear", weight={"min": "1", "max": "1"}),
        says='max "1" must be above min "1"',
    ),
    Case(
        _ONE,
        "start must lie between min and max",
        _with("linear", weight={**_FREE, "start": "1.5"}),
        says='start "1.5" is not between min "0" and max "1"',
    ),
    Case(
        "spec.worker.cache",
        "at most one of persistentVolumeClaim, emptyDir and hostPath is to be given",
        {"spec.worker.cache": {"emptyDir": {}, "hostPath": {"path": "/cache"}}},
    ),
    Case(
        "spec.export.uri",
        "an export must lie at s3://bucket/folder: a cluster reaches no file:// and no relative path",
        {"spec.export.uri": "file:///out"},
        besides=["spec.export.uri in body should match '^s3://"],
    ),
]
"""Refused when an EvoMerge is created."""


def _forever(field: str, changes: Changes) -> Case:
    return Case(
        f"spec.{field}",
        f"{field} cannot change once a search has begun: delete this EvoMerge, or make one of another name",
        changes,
    )


REPLACED: list[Case] = [
    _forever("models", {"spec.models.0.uri": "s3://models/other"}),
    _forever("models", {"spec.models.0.license": GONE}),
    _forever("base", {"spec.base.uri": "s3://models/other"}),
    _forever("base", {"spec.base": GONE}),
    _forever("tokenizerSource", {"spec.tokenizerSource": "base"}),
    _forever("tokenizerSource", {"spec.tokenizerSource": GONE}),
    _forever("chatTemplate", {"spec.chatTemplate": "chatml"}),
    _forever("configSource", {"spec.configSource": "two"}),
    _forever("configSource", {"spec.configSource": GONE}),
    _forever("trustRemoteCode", {"spec.trustRemoteCode": GONE}),
    _forever("evaluation", {"spec.evaluation.threads": 1}),
    _forever("evaluation", {f"{_OBJECTIVE}.extract": GONE}),
    _forever("stages", {"spec.stages.0.search.candidates": 10}),
    _forever("stages", {"spec.stages.0.search.population": GONE}),
    _forever("export", {"spec.export.uri": "s3://out/elsewhere"}),
]
"""Refused when a good EvoMerge is replaced."""

ADDED_BASE = _forever("base", {"spec.base": {"uri": "s3://models/base"}})
"""Refused when an EvoMerge without a base is replaced."""

MAY_CHANGE: dict[str, Changes] = {
    "parallelism": {"spec.parallelism": 7},
    "suspend": {"spec.suspend": False},
    "budget": {"spec.budget": {"failures": 9, "deadline": "1h"}},
    "worker": {"spec.worker": {"image": "other", "candidatesPerPod": 1}},
    "ttl": {"spec.ttlSecondsAfterFinished": GONE},
    "storage": {"spec.storage.s3.endpoint": "http://elsewhere", "spec.storage.s3.secretName": "rotated"},
    "labels": {"metadata.labels": {"team": "other"}},
}
"""What may change while a search runs."""

CANDIDATE_CREATED: list[Case] = [
    Case("spec", "a candidate has a genome, a baseline has a name", {"spec.genome": GONE}),
    Case("spec", "a candidate has a genome, a baseline has a name", {"spec.name": "average"}),
]
CANDIDATE_REPLACED: list[Case] = [
    Case("spec", "a candidate never changes once it is made", {"spec.genome": "0.5,-0.2"}),
    Case("spec", "a candidate never changes once it is made", {"spec.generation": 1}),
]

SUCCEEDED: Document = {"outcome": "Succeeded", "fitness": 0.5, "scores": {"sums": 0.5}, "attempts": 1}
CANDIDATE_TOLD: list[Case] = [
    Case("status", "a fitness is there exactly when the candidate succeeded", {"fitness": 0.5}),
    Case("status", "a fitness is there exactly when the candidate succeeded", {"outcome": "Succeeded"}),
    Case("status", "a fitness is there exactly when the candidate succeeded", {"outcome": "Failed", "fitness": 0.5}),
]
"""Refused as the status of a candidate that is not finished."""
CANDIDATE_RETOLD: list[Case] = [
    Case("status", "what a finished candidate came to never changes", {"outcome": "Failed", "fitness": None}),
    Case("status", "what a finished candidate came to never changes", {"fitness": 0.6}),
    Case("status", "what a finished candidate came to never changes", dict.fromkeys(SUCCEEDED)),
]
"""Refused as a change of the status of a candidate that has succeeded."""

EVERY_CASE = {
    "EvoMerge": [*CREATED, *REPLACED, ADDED_BASE],
    "MergeCandidate": [*CANDIDATE_CREATED, *CANDIDATE_REPLACED, *CANDIDATE_TOLD, *CANDIDATE_RETOLD],
}

_AFTER = {
    "name": "dfs",
    "dataFlowSpace": {"models": ["ps", "two"], "repeats": 2, "scales": {"per": "Pair"}, "layers": {"max": 9}},
    "search": {"candidates": 1},
    "onNoGain": "Stop",
    "worker": {"timeoutSeconds": 5, "resources": {"limits": {"memory": "1Gi"}}},
}
GOOD: dict[str, Changes] = {
    "every field": {},
    "two stages": {"spec.stages": [*good_evomerge("")["spec"]["stages"], _AFTER]},
    "the least": {
        "spec.base": GONE,
        "spec.storage": GONE,
        "spec.budget": GONE,
        "spec.worker": GONE,
        "spec.tokenizerSource": GONE,
        "spec.configSource": GONE,
        "spec.trustRemoteCode": GONE,
        "spec.parallelism": GONE,
        "spec.suspend": GONE,
        "spec.ttlSecondsAfterFinished": GONE,
        "spec.models.0.license": GONE,
        f"{_STAGE}.groups": GONE,
        "spec.stages.0.search": {"candidates": 1},
        f"{_STAGE}.parameters": {"weight": _FREE},
        "spec.evaluation": {
            "objectives": [
                {
                    "name": "sums",
                    "metric": "perplexity",
                    "jsonl": {s: f"s3://d/{s}" for s in ("search", "select", "test")},
                }
            ]
        },
    },
    "a data-flow space": _flow({}),
    "a data-flow space with every field": _flow(
        {
            "models": ["two", "one"],
            "repeats": 3,
            "scales": {"per": "Pair", "min": "0.05", "max": "8"},
            "layers": {"min": 4, "max": 80},
        }
    ),
    "the longest name": {"metadata.name": "a" * 30},
    **{
        method: _with(
            method,
            **dict.fromkeys(known.real, _FREE)
            | {name: {"value": "false"} for name in known.switches}
            | (
                {"density": {"min": "0.4", "max": "0.6"}, "epsilon": {"min": "0", "max": "0.3"}} if known.margin else {}
            ),
        )
        for method, known in SEARCHABLE.items()
    },
    **{
        f"groups by {name}": {f"{_STAGE}.groups": {name: value}}
        for name, value in (("layers", 4), ("everyLayer", True), ("components", True))
    },
    **{
        f"cache in {name}": {"spec.worker.cache": {name: value}}
        for name, value in (("emptyDir", {"sizeLimit": "10Gi"}), ("hostPath", {"path": "/var/cache"}))
    },
    **{f"the tokens of {name}": {"spec.tokenizerSource": name} for name in ("base", "two")},
    **{f"the config of {name}": {"spec.configSource": name} for name in ("base", "two")},
    "no cache": {"spec.worker.cache": {}},
}
"""Changes that leave the manifest a good one."""
