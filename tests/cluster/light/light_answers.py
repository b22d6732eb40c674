"""What the light worker makes up: sources, data, and scores that a search can climb."""

import hashlib
import math
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from evomerge_contract.base import canonical_json, digest_of
from evomerge_contract.manifest import SPLITS, Objective, SplitName
from evomerge_contract.metrics import METRICS
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import Flow, ItemScore, Layout, PreparedSource, PreparedSplit, PrepareResult
from evomerge_contract.task import PrepareTask
from evomerge_worker.store import Store
from evomerge_worker.store.s3 import split_prefix

LAYERS = 4
ITEMS = 100
_LAYOUT = Layout(
    layer_prefix="model.layers.",
    layers=LAYERS,
    layer_tensors=[
        "input_layernorm.weight",
        "mlp.down_proj.weight",
        "mlp.up_proj.weight",
        "self_attn.o_proj.weight",
        "self_attn.q_proj.weight",
    ],
    before=["model.embed_tokens.weight"],
    after=["model.norm.weight", "lm_head.weight"],
)
_NARROW = 4.0
_SPREAD = 0.2


def prepare(task: PrepareTask, store: Store) -> PrepareResult:
    """Every source and split is its URI, unless an earlier prepare has pinned it; a stage's winner is its content."""
    pinned = task.data or {}
    return PrepareResult(
        sources=[
            PreparedSource(
                name=source.name,
                digest=source.digest or digest_of({"model": _content(source.uri, store)}),
                bytes=4_000_000,
                dtype="float32",
                parameters=1_000_000,
            )
            for source in task.sources
        ],
        layout=_LAYOUT.model_copy(update={"flow": _flow(task)}) if task.flows else _LAYOUT,
        data={
            objective.name: {
                split: PreparedSplit(
                    digest=getattr(pinned.get(objective.name), split, None)
                    or digest_of({"data": objective.evaluator.uris[split]}),
                    items=ITEMS,
                )
                for split in SPLITS
            }
            for objective in task.objectives
        },
        versions={"evomerge": version("evomerge")},
    )


def _content(uri: str, store: Store) -> str:
    if "/stages/" not in uri:
        return uri
    bucket, prefix = split_prefix(uri, "model")
    return store.s3.get_object(Bucket=bucket, Key=f"{prefix}model.safetensors")["Body"].read().decode()


def _flow(task: PrepareTask) -> Flow:
    divided = ["mlp.down_proj.weight", "self_attn.o_proj.weight"]
    return Flow(divided=divided, layers={source.name: LAYERS for source in task.sources})


def score(recipe: Recipe, objective: Objective, split: SplitName) -> list[ItemScore]:
    """Made-up item scores: the nearer a recipe's numbers to where the best lie, the better, and smoothly so.

    The items differ among each other and between splits, and alike for all recipes.
    """
    numbers = list(_numbers(recipe.plain(), ()))
    misses = [(number - _between(0.2, 0.8, objective.name, *path)) ** 2 for path, number in numbers] or [1.0]
    good = 0.1 + 0.7 * math.exp(-_NARROW * math.fsum(misses) / len(misses))
    rights = [good + _between(-_SPREAD, _SPREAD, objective.name, split, item) / 2 for item in range(ITEMS)]
    lower = METRICS[objective.metric].lower_is_better
    return [ItemScore(value=-math.log(right) if lower else right) for right in rights]


def _numbers(value: Any, path: tuple[object, ...]) -> Iterator[tuple[tuple[object, ...], float]]:
    """Every parameter of a recipe, and where in it: by the name of the model, so that models differ."""
    if isinstance(value, dict):
        for key in sorted(value):
            if key != "layer_range":
                yield from _numbers(value[key], (*path, value.get("model", ""), key))
    elif isinstance(value, list):
        for place, entry in enumerate(value):
            yield from _numbers(entry, (*path, place))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)


def _between(low: float, high: float, *what: object) -> float:
    """A number that `what` alone decides."""
    drawn = hashlib.sha256(canonical_json(what).encode()).digest()
    return low + (high - low) * int.from_bytes(drawn[:8], "big") / 2**64
