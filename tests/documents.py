"""A small valid manifest as plain values, for tests to change, and what a prepare step would have found for it."""

from typing import Any

from evomerge_contract.manifest import EvoMerge
from evomerge_contract.report import Layout, PreparedSource, PreparedSplit, PrepareResult


def document(**spec: Any) -> dict[str, Any]:
    """A manifest of two models, method linear, eight candidates; `spec` replaces fields of the spec."""
    return {
        "apiVersion": "evomerge.dev/v1alpha1",
        "kind": "EvoMerge",
        "metadata": {"name": "tiny"},
        "spec": {
            "models": [{"name": "a", "uri": "models/a"}, {"name": "b", "uri": "models/b"}],
            "evaluation": {
                "objectives": [
                    {
                        "name": "sums",
                        "jsonl": {"search": "search.jsonl", "select": "select.jsonl", "test": "test.jsonl"},
                        "metric": "exact_match",
                        "maxNewTokens": 4,
                    }
                ]
            },
            "stages": [stage()],
        }
        | spec,
    }


def stage(
    method: str = "linear",
    groups: dict[str, Any] | None = None,
    parameters: dict[str, Any] | None = None,
    **search: Any,
) -> dict[str, Any]:
    """A stage; without arguments one weight per model over the whole model."""
    return {
        "name": "ps",
        "parameterSpace": {
            "method": method,
            "groups": groups or {"layers": 1},
            "parameters": parameters or {"weight": {"min": "0", "max": "1"}},
        },
        "search": {"candidates": 8} | search,
    }


LAYER_TENSORS = [
    "input_layernorm.weight",
    "mlp.down_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "post_attention_layernorm.weight",
    "self_attn.k_proj.weight",
    "self_attn.o_proj.weight",
    "self_attn.q_proj.weight",
    "self_attn.v_proj.weight",
]
LAYOUT = Layout(
    layer_prefix="model.layers.",
    layers=4,
    layer_tensors=LAYER_TENSORS,
    before=["model.embed_tokens.weight"],
    after=["lm_head.weight", "model.norm.weight"],
)
"""The tensors of a Llama of four layers."""


def prepared(manifest: EvoMerge, layout: Layout = LAYOUT) -> PrepareResult:
    """What prepare would say of the manifest's sources and data."""
    names = [m.name for m in manifest.spec.models] + (["base"] if manifest.spec.base else [])
    split = PreparedSplit(digest="sha256:" + "0" * 64, items=10)
    return PrepareResult(
        sources=[
            PreparedSource(name=n, digest="sha256:" + f"{i:064d}", bytes=100, dtype="bfloat16", parameters=50)
            for i, n in enumerate(names)
        ],
        layout=layout,
        data={o.name: {"search": split, "select": split, "test": split} for o in manifest.spec.evaluation.objectives},
    )
