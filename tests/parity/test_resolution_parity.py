"""The parameters of every tensor, against what mergekit resolves for the same recipe."""

import random
from collections.abc import Mapping
from typing import Any

import pytest

from evomerge_contract.filters import names
from evomerge_contract.manifest import EvoMergeSpec, ParameterSpace
from evomerge_contract.recipe import Recipe
from evomerge_operator.spaces.parameter_space import make_parameter_space
from evomerge_worker.merge import TensorPlan, plan_merge
from evomerge_worker.shards import Checkpoint
from merge_corpus import CORPUS, Entry
from oracle import Oracle
from tiny_models import Tiny

LAYERS = 4
FILTERED = [{"filter": "attn", "value": 0.25}, {"filter": "layers.2", "value": [0.5, 1.5]}, {"value": 0.125}]


def _slice(first: int, last: int, *, a: Any = None, b: Any = None, shared: Any = None, base: bool = False) -> Any:
    sources = [{"model": m, "layer_range": [first, last], "parameters": p} for m, p in (("a", a), ("b", b))]
    if base:
        sources.append({"model": "base", "layer_range": [first, last], "parameters": None})
    return {"sources": sources, "parameters": shared}


HAND_WRITTEN: dict[str, dict[str, Any]] = {
    "scalars": {
        "merge_method": "linear",
        "models": [{"model": "a", "parameters": {"weight": 1}}, {"model": "b", "parameters": {"weight": 0.3}}],
    },
    "gradients": {
        "merge_method": "ties",
        "base_model": "base",
        "models": [
            {"model": "a", "parameters": {"weight": [0, 0.3, 1], "density": [1, 0.1]}},
            {"model": "b", "parameters": {"weight": [2, 1], "density": [0.7]}},
        ],
        "parameters": {"lambda": [0.5, 1.5], "normalize": False},
    },
    "filters": {
        "merge_method": "dare_ties",
        "base_model": "base",
        "models": [{"model": "a", "parameters": {"weight": FILTERED}}, {"model": "base"}, {"model": "b"}],
        "parameters": {
            "weight": [{"filter": "mlp", "value": 0.75}, {"filter": "*", "value": [1, 2]}],
            "density": [{"filter": "embed", "value": 0.5}],
            "rescale": False,
        },
    },
    "filters that match nothing": {
        "merge_method": "linear",
        "models": [
            {"model": "a", "parameters": {"weight": [{"filter": "nowhere", "value": 9}]}},
            {"model": "b", "parameters": {"weight": [{"filter": "q_proj", "value": 0.4}]}},
        ],
        "parameters": {"weight": [1, 0]},
    },
    "the base is added": {
        "merge_method": "linear",
        "base_model": "base",
        "models": [{"model": "a"}, {"model": "b", "parameters": {"weight": 0.5}}],
        "parameters": {"weight": 0.1},
    },
    "slerp": {
        "merge_method": "slerp",
        "base_model": "b",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"t": [{"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]}, {"value": 0.5}]},
    },
    "slices": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "slices": [
            _slice(0, 1, a={"weight": [0.2, 0.8]}, b={"weight": 0.4}, base=True),
            _slice(1, 4, a={"weight": [0.1, 0.9]}, shared={"weight": FILTERED, "lambda": [1, 3]}, base=True),
        ],
        "parameters": {"lambda": 0.9, "normalize": True},
    },
    "slices of other layers": {
        "merge_method": "linear",
        "slices": [
            {
                "sources": [
                    {"model": "b", "layer_range": [2, 4], "parameters": {"weight": FILTERED}},
                    {"model": "a", "layer_range": [0, 2], "parameters": {"weight": [0, 1]}},
                ]
            },
            {"sources": [{"model": "a", "layer_range": [1, 3]}], "parameters": {"weight": [5, 6]}},
        ],
    },
    "one layer a slice": {
        "merge_method": "slerp",
        "base_model": "a",
        "slices": [_slice(i, i + 1, shared={"t": [i / 4, i / 5]}) for i in range(LAYERS)],
    },
}

GROUPS = {
    "one": {"layers": 1},
    "blocks": {"layers": 3},
    "every layer": {"everyLayer": True},
    "components": {"components": True},
    "patterns": {
        "patterns": [{"name": "queries", "regex": r"q_proj|k_proj"}, {"name": "early", "regex": r"layers\.[01]\."}]
    },
}
WEIGHT = {"min": "-1", "max": "2"}
DENSITY = {"min": "0.1", "max": "1"}
SPACES: dict[str, dict[str, Any]] = {
    "linear": {"weight": {"min": "0", "max": "1", "sumsToOne": True}},
    "slerp": {"t": {"min": "0", "max": "1"}},
    "task_arithmetic": {"weight": WEIGHT, "lambda": {"min": "0.5", "max": "2"}},
    "ties": {"weight": WEIGHT, "density": DENSITY, "normalize": {"value": "false"}},
    "dare_ties": {"weight": WEIGHT, "density": DENSITY, "lambda": {"value": "1.5"}},
    "dare_linear": {"weight": WEIGHT, "density": DENSITY},
    "della": {"weight": WEIGHT, "density": {"min": "0.4", "max": "0.6"}, "epsilon": {"min": "0", "max": "0.3"}},
    "breadcrumbs": {"weight": WEIGHT, "density": DENSITY, "gamma": {"min": "0", "max": "0.1"}},
    "nuslerp": {"weight": WEIGHT, "nuslerp_flatten": {"value": "false"}},
    "multislerp": {"weight": WEIGHT},
    "nearswap": {"t": {"min": "0", "max": "0.1"}},
    "sce": {"select_topk": {"min": "0.1", "max": "1"}},
    "ram": {"epsilon": {"min": "0", "max": "0.01"}},
    "ramplus_tl": {"r": {"min": "0", "max": "1"}, "alpha": {"min": "0", "max": "2"}, "epsilon": {"value": "0.0001"}},
}


@pytest.fixture(scope="module")
def sources(tiny: Tiny) -> dict[str, Checkpoint]:
    return {n: Checkpoint.open(tiny("llama", seed=s), n) for n, s in (("a", 1), ("b", 2), ("base", 0))}


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_a_hand_written_recipe_means_what_it_means_to_mergekit(
    oracle: Oracle, sources: dict[str, Checkpoint], name: str
) -> None:
    _check(oracle, Recipe.model_validate(HAND_WRITTEN[name]), sources)


@pytest.mark.parametrize("name", CORPUS)
def test_a_recipe_of_the_corpus_means_what_it_means_to_mergekit(oracle: Oracle, tiny: Tiny, name: str) -> None:
    sources = CORPUS[name].checkpoints(tiny)
    _check(oracle, Recipe.model_validate(CORPUS[name].over(sources)), sources)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("method", SPACES)
def test_a_decoded_genome_means_what_it_means_to_mergekit(
    oracle: Oracle, sources: dict[str, Checkpoint], method: str, groups: str
) -> None:
    """Random genomes, corners of the space included."""
    space = ParameterSpace.model_validate(
        {"method": method, "groups": GROUPS[groups], "parameters": SPACES[method]}, by_alias=True
    )
    genes = make_parameter_space(space, ["a", "b"], _spec(), sources["a"].layout, "bfloat16")
    chance = random.Random(f"{method} {groups}")
    for draw in (
        lambda gene: chance.uniform(gene.low, gene.high),
        lambda gene: chance.choice([gene.low, gene.high]),
        lambda gene: chance.choice([gene.low, gene.high, gene.start]),
    ):
        _check(oracle, genes.decode(tuple(round(draw(gene), 6) for gene in genes.genes)), sources)


MIXTRALS_GROUPS: dict[str, dict[str, Any]] = GROUPS | {
    "experts by their matrices": {
        "patterns": [
            {"name": "down", "regex": r"w2|experts\.down_proj"},
            {"name": "router", "regex": r"(moe|mlp)\.gate\."},
            {"name": "early", "regex": r"layers\.0\..*(w[13]|gate_up_proj)"},
        ]
    }
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("groups", MIXTRALS_GROUPS)
def test_a_decoded_genome_selects_the_same_of_fused_experts(
    oracle: Oracle, tiny: Tiny, groups: str, fused: bool
) -> None:
    """Whether they lie on disk as they were published (w1, w2, w3 of each expert) or as in memory: mergekit's names."""
    if fused:
        entry = Entry("", "mixtral", "bfloat16", {"models": [{"model": m} for m in ("base", "a", "b")]})
        folders = [checkpoint.folder for checkpoint in entry.checkpoints(tiny).values()]
    else:
        folders = [tiny("mixtral", seed=seed) for seed in range(3)]
    sources = {n: Checkpoint.open(folder, n) for n, folder in zip(("base", "a", "b"), folders, strict=True)}
    space = ParameterSpace.model_validate(
        {"method": "ties", "groups": MIXTRALS_GROUPS[groups], "parameters": SPACES["ties"]}, by_alias=True
    )
    genes = make_parameter_space(space, ["a", "b"], _spec(), sources["a"].layout, "bfloat16")
    chance = random.Random(groups)
    recipe = genes.decode(tuple(round(chance.uniform(gene.low, gene.high), 6) for gene in genes.genes))
    theirs = oracle(ask="resolve", recipe=_with_paths(recipe, sources))
    called = {str(checkpoint.folder): name for name, checkpoint in sources.items()}
    ours = plan_merge(recipe, sources)
    assert {names(plan.name)[-1] for plan in ours} == theirs.keys()
    for plan in ours:
        answer = _of_mergekit(theirs[names(plan.name)[-1]], plan, called)
        assert {key: _resolved(plan)[key] for key in ("shared", "per_model")} == {
            key: answer[key] for key in ("shared", "per_model")
        }, plan.name


def _spec() -> EvoMergeSpec:
    """What a space needs to know of a run: its models and base."""
    jsonl = {"search": "file:///s", "select": "file:///v", "test": "file:///t"}
    return EvoMergeSpec.model_validate(
        {
            "models": [{"name": "a", "uri": "file:///a"}, {"name": "b", "uri": "file:///b"}],
            "base": {"uri": "file:///base"},
            "evaluation": {"objectives": [{"name": "o", "jsonl": jsonl, "metric": "acc"}]},
            "stages": [
                {
                    "name": "ps",
                    "parameterSpace": {"method": "linear", "parameters": {"weight": WEIGHT}},
                    "search": {"candidates": 1},
                }
            ],
        }
    )


def _check(oracle: Oracle, recipe: Recipe, sources: dict[str, Checkpoint]) -> None:
    """Compare tensor by tensor: inputs, base, every parameter, to the last bit."""
    called = {str(checkpoint.folder): name for name, checkpoint in sources.items()}
    theirs = oracle(ask="resolve", recipe=_with_paths(recipe, sources))
    ours = plan_merge(recipe, sources)
    assert sorted(plan.name for plan in ours) == sorted(theirs)
    for plan in ours:
        if plan.method is None:  # a buffer, which is copied from the anchor
            continue
        assert _resolved(plan) == _of_mergekit(theirs[plan.name], plan, called), plan.name


def _with_paths(recipe: Recipe, sources: Mapping[str, Checkpoint]) -> dict[str, Any]:
    plain = recipe.plain()
    for entry in [*plain.get("models", []), *(s for one in plain.get("slices", []) for s in one["sources"])]:
        entry["model"] = str(sources[entry["model"]].folder)
    if "base_model" in plain:
        plain["base_model"] = str(sources[plain["base_model"]].folder)
    return plain


def _resolved(plan: TensorPlan) -> dict[str, Any]:
    inputs = [*plan.inputs, *([plan.base] if plan.base else [])]
    return {
        "inputs": {i.model: i.tensor for i in inputs},
        "base": plan.base.model if plan.base else None,
        "shared": dict(plan.shared),
        "per_model": {i.model: dict(i.values) for i in plan.inputs},
    }


def _of_mergekit(answer: dict[str, Any], plan: TensorPlan, called: dict[str, str]) -> dict[str, Any]:
    """mergekit's answer in our words.

    Some methods take no base; task_arithmetic's density is parsed but never used; a scale of one is none to mergekit,
    which has no scale_origin.
    """
    base = called[answer["base"]] if answer["base"] and plan.base else None
    per_model = {called[path]: dict(values) for path, values in answer["per_model"].items() if called[path] != base}
    if plan.method == "task_arithmetic":
        for values in per_model.values():
            values.pop("density")
    if plan.method == "passthrough":
        scales = {name: 1.0 if values["scale"] is None else values["scale"] for name, values in per_model.items()}
        per_model = {name: {"scale": scale, "scale_origin": 0.0} for name, scale in scales.items()}
    return {
        "inputs": {called[path]: tensor for path, tensor in answer["inputs"].items()},
        "base": base,
        "shared": answer["shared"],
        "per_model": per_model,
    }
