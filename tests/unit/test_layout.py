"""Telling a model's layers from its tensors' names."""

import hashlib
import json
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from documents import LAYOUT, document, prepared
from evomerge_contract.manifest import EvoMerge
from evomerge_contract.note import NOTE_BYTES, read_note, write_note
from evomerge_contract.report import Layout, PreparedSplit, PrepareResult, Report
from evomerge_contract.task import PrepareTask
from evomerge_operator.plan.run import prepare_task
from evomerge_worker.shards import Checkpoint, layout_of
from published_names import llava, mixtral, sdxl_unet
from tiny_models import Tiny


def _shapes(*names: str) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(names, (2, 2))


@pytest.mark.parametrize(
    ("family", "prefix", "before", "after"),
    [
        ("llama", "model.layers.", {"model.embed_tokens.weight"}, {"model.norm.weight", "lm_head.weight"}),
        ("llama-tied", "model.layers.", {"model.embed_tokens.weight"}, {"model.norm.weight"}),
        (
            "gpt_neox",
            "gpt_neox.layers.",
            {"gpt_neox.embed_in.weight"},
            {"gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias", "embed_out.weight"},
        ),
        (
            "gpt2",
            "transformer.h.",
            {"transformer.wte.weight", "transformer.wpe.weight"},
            {"transformer.ln_f.weight", "transformer.ln_f.bias"},
        ),
        ("mixtral", "model.layers.", {"model.embed_tokens.weight"}, {"model.norm.weight", "lm_head.weight"}),
    ],
)
def test_the_layers_of_a_family_are_found(
    tiny: Tiny, family: str, prefix: str, before: set[str], after: set[str]
) -> None:
    layout = Checkpoint.open(tiny(family), family).layout
    assert layout.layer_prefix == prefix
    assert layout.layers == 4
    assert (set(layout.before), set(layout.after)) == (before, after)


def test_the_embeddings_norm_of_bert_stands_before_its_layers_and_the_head_after(tiny: Tiny) -> None:
    layout = Checkpoint.open(tiny("bert"), "bert").layout
    assert layout.layer_prefix == "bert.encoder.layer."
    assert all(name.startswith("bert.embeddings.") for name in layout.before)
    assert "bert.embeddings.LayerNorm.weight" in layout.before
    assert layout.after
    assert all(name.startswith("cls.") for name in layout.after)


def test_experts_inside_a_layer_are_not_taken_for_layers(tiny: Tiny) -> None:
    """Mixtral has more tensors in experts than anywhere else."""
    layout = Checkpoint.open(tiny("mixtral"), "mixtral").layout
    assert "block_sparse_moe.experts.1.w2.weight" in layout.layer_tensors


def test_layers_may_differ(tiny: Tiny) -> None:
    """The first layer of DeepSeek V3 is dense, the others have experts: the layout holds what any of them has."""
    checkpoint = Checkpoint.open(tiny("deepseek_v3"), "deepseek")
    assert {"mlp.gate_proj.weight", "mlp.experts.0.gate_proj.weight"} <= set(checkpoint.layout.layer_tensors)
    assert "mlp.gate_proj.weight" in checkpoint.layer_tensors[0]
    assert "mlp.gate_proj.weight" not in checkpoint.layer_tensors[1]


def test_every_tensor_has_exactly_one_place(tiny: Tiny) -> None:
    for family in ("llama", "gpt_neox", "deepseek_v3", "bert"):
        checkpoint = Checkpoint.open(tiny(family), family)
        layout = checkpoint.layout
        in_layers = [
            f"{layout.layer_prefix}{i}.{t}" for i, tensors in enumerate(checkpoint.layer_tensors) for t in tensors
        ]
        assert sorted([*layout.before, *in_layers, *layout.after]) == checkpoint.names


def test_a_vision_tower_with_more_tensors_loses_to_the_larger_language_model() -> None:
    tower = {f"vision_tower.layers.{i}.{t}": (2, 2) for i in range(9) for t in "abcdef"}
    language = {f"language_model.model.layers.{i}.{t}": (64, 64) for i in range(4) for t in "ab"}
    ends = _shapes("language_model.model.embed_tokens.weight", "language_model.lm_head.weight", "projector.weight")
    layout = layout_of(tower | language | ends)
    assert layout.layer_prefix == "language_model.model.layers."
    assert set(tower) < set(layout.before)
    assert layout.after == ["language_model.lm_head.weight", "projector.weight"]


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="no tensor belongs to a numbered layer"):
        layout_of(_shapes("embed.weight", "head.weight"))


def test_a_gap_between_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no tensor of layer model\.layers\.1, though there are later layers"):
        layout_of(_shapes("model.layers.0.w", "model.layers.2.w"))


@pytest.mark.parametrize(
    "names", [sdxl_unet(), mixtral(8), mixtral(256, layers=4), llava()], ids=["sdxl", "mixtral", "256 experts", "llava"]
)
def test_what_prepare_found_fits_its_note_at_any_size(names: list[str]) -> None:
    layout = layout_of(_shapes(*names))
    task, result = _found(layout)
    report = Report(task=task.digest, kind="prepare", outcome="Succeeded", prepare=result)
    note = write_note([task], [report])
    assert len(note.encode()) < 3000
    [read] = read_note(note, [task]) or []
    assert read.prepare == result
    assert read.prepare.layout.before == layout.before


def test_what_prepare_found_of_the_largest_manifest_fits_its_note() -> None:
    """Thirty-two models and eight objectives, their names as long as may be, and a U-Net's layout."""
    chance = Random(1)

    def name() -> str:
        return "".join(chance.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=30))

    jsonl = {split: f"s3://data/{split}" for split in ("search", "select", "test")}
    objectives = [{"name": name(), "jsonl": jsonl, "metric": "acc"} for _ in range(8)]
    task, result = _found(layout_of(_shapes(*sdxl_unet())), [name() for _ in range(32)], objectives=objectives)
    report = Report(task=task.digest, kind="prepare", outcome="Succeeded", prepare=result)
    note = write_note([task], [report])
    assert len(note.encode()) <= NOTE_BYTES
    [read] = read_note(note, [task]) or []
    assert read.prepare == result
    assert read_note(note.replace('"y":"0', '"y":"1'), [task]) is None


def _found(
    layout: Layout, names: Sequence[str] = tuple(f"model-{i}" for i in range(8)), **evaluation: Any
) -> tuple[PrepareTask, PrepareResult]:
    """What prepare says of these sources and a base, with content as random as digests are."""
    models = [{"name": name, "uri": f"s3://models/{name}"} for name in names]
    spec = {"evaluation": evaluation} if evaluation else {}
    manifest = EvoMerge.model_validate(document(models=models, base={"uri": "s3://models/base"}, **spec))
    result = prepared(manifest, layout)
    size = Random(2).randrange
    sources = [
        s.model_copy(
            update={"digest": _digest(s.name), "bytes": size(10**10, 10**11), "parameters": size(10**9, 10**10)}
        )
        for s in result.sources
    ]
    found = {
        name: {s: PreparedSplit(digest=_digest(name + s), items=500 + len(s)) for s in ("search", "select", "test")}
        for name in result.data
    }
    return prepare_task(manifest, "s3://x/r"), result.model_copy(update={"sources": sources, "data": found})


def _digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def test_the_layout_of_a_small_model_is_written_as_lists_of_names() -> None:
    """As it always was, so locks and notes stay as they are."""
    assert LAYOUT.wire() == {
        "layerPrefix": "model.layers.",
        "layers": 4,
        "layerTensors": LAYOUT.layer_tensors,
        "before": LAYOUT.before,
        "after": LAYOUT.after,
    }


def test_a_large_layout_is_read_from_patterns_and_from_the_lists_of_the_first_version() -> None:
    layout = layout_of(_shapes(*sdxl_unet()))
    patterns = layout.wire()
    lists = layout.model_dump(by_alias=True)
    assert isinstance(patterns["before"], str)
    assert isinstance(lists["before"], list)
    assert Layout.model_validate_json(json.dumps(patterns)) == Layout.model_validate_json(json.dumps(lists)) == layout


@pytest.mark.parametrize("names", [[f"z.{i}" for i in range(200)], ["a"] * 100, [f"a.{{{i}" for i in range(100, 300)]])
def test_names_that_a_pattern_would_not_give_back_stay_a_list(names: list[str]) -> None:
    layout = LAYOUT.model_copy(update={"before": names})
    assert layout.wire()["before"] == names
    assert Layout.model_validate(layout.wire()) == layout


def test_a_hostile_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="more names than any model has tensors"):
        Layout.model_validate(LAYOUT.wire() | {"before": "{0..9}" * 30})
