"""Adapters that bring tokens: embeddings and head saved whole, of another number of rows than the model's."""

import json
from pathlib import Path

import pytest
import torch

from adapters import PREFIX, write_adapter
from evomerge_contract.manifest import Storage
from evomerge_contract.recipe import Recipe
from evomerge_contract.task import Source
from evomerge_worker.errors import InputError
from evomerge_worker.merge import export_checkpoint
from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.tokenizer import load_tokenizer
from evomerge_worker.sources import source_folder
from evomerge_worker.store import Store
from evomerge_worker.store.outline import Outline
from tiny_models import VOCABULARY, Tiny, write_tokenizer

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
MORE = [*VOCABULARY, "<|im_start|>", "<|im_end|>"]
QUERY = "model.layers.0.self_attn.q_proj"


def rows(factor: float) -> torch.Tensor:
    return (torch.arange(len(MORE) * 32).reshape(-1, 32) * factor).bfloat16()


def adapter(folder: Path, model: Checkpoint, *tables: str, tokenizer: bool = True) -> Path:
    whole = {f"{PREFIX}{name}": rows(0.001 * (i + 1)) for i, name in enumerate(tables)}
    write_adapter(folder, model, [QUERY], extra=whole)
    if tokenizer:
        write_tokenizer(folder, MORE)
    return folder


def adapted(model: Path, lora: Path, tmp_path: Path) -> Checkpoint:
    store = Store(Storage(), tmp_path / "cache")
    source = Source(name="a", uri=model.as_uri(), adapter=lora.as_uri())
    return Checkpoint.open(source_folder(source, store, code=False), "a")


@pytest.mark.parametrize(("family", "tables"), [("llama", (EMBEDDINGS, HEAD)), ("llama-tied", (EMBEDDINGS,))])
def test_the_model_gets_its_rows_its_tokens_and_loads(
    tiny: Tiny, tmp_path: Path, family: str, tables: tuple[str, ...]
) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny(family, seed=1)
    config = {} if len(tables) > 1 else {"ensure_weight_tying": True}
    lora = adapter(tmp_path / "lora", Checkpoint.open(model, "a"), *tables)
    settings = json.loads((lora / "adapter_config.json").read_text()) | config
    (lora / "adapter_config.json").write_text(json.dumps(settings))
    made = adapted(model, lora, tmp_path)
    assert made.config["vocab_size"] == len(MORE)
    for i, name in enumerate(tables):
        assert torch.equal(made.tensor(name), rows(0.001 * (i + 1)))
    assert load_tokenizer(made, trust_remote_code=False).get_vocab()["<|im_end|>"] == len(MORE) - 1
    assert AutoModelForCausalLM.from_pretrained(made.folder).get_input_embeddings().weight.shape[0] == len(MORE)
    assert not torch.equal(made.tensor(f"{QUERY}.weight"), Checkpoint.open(model, "a").tensor(f"{QUERY}.weight"))


def test_it_is_merged_with_models_of_other_tokens(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny(seed=1)
    made = adapted(model, adapter(tmp_path / "lora", Checkpoint.open(model, "a"), EMBEDDINGS, HEAD), tmp_path)
    told = [{"model": name, "parameters": {"weight": 0.5}} for name in "ab"]
    recipe = Recipe.model_validate({"merge_method": "linear", "models": told, "tokenizer_source": "union"})
    sources = {"a": made, "b": Checkpoint.open(tiny(seed=2), "b")}
    export_checkpoint(recipe, sources, tmp_path / "out", mask_seed=0)
    out = Checkpoint.open(tmp_path / "out", "out")
    assert torch.equal(out.tensor(EMBEDDINGS)[-1], rows(0.001)[-1])


def test_the_first_look_sees_its_tokens_too(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny(seed=1)
    lora = adapter(tmp_path / "lora", Checkpoint.open(model, "a"), EMBEDDINGS, HEAD)
    (tmp_path / "outlines").mkdir()
    store = Outline(Store(Storage(), tmp_path / "cache"), tmp_path / "outlines")
    source = Source(name="a", uri=model.as_uri(), adapter=lora.as_uri())
    assert Checkpoint.open(source_folder(source, store, code=False), "a").config["vocab_size"] == len(MORE)


def refusal(model: Path, lora: Path, tmp_path: Path) -> str:
    with pytest.raises(InputError) as caught:
        adapted(model, lora, tmp_path)
    (problem,) = caught.value.problems
    return problem.message


def test_without_a_head_for_them_it_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny(seed=1)
    lora = adapter(tmp_path / "lora", Checkpoint.open(model, "a"), EMBEDDINGS)
    assert refusal(model, lora, tmp_path) == (
        "the adapter was trained with 98 rows of tokens, and does not hold lm_head.weight with as many; save it with "
        "save_embedding_layers=True"
    )


def test_without_a_tokenizer_it_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny(seed=1)
    lora = adapter(tmp_path / "lora", Checkpoint.open(model, "a"), EMBEDDINGS, HEAD, tokenizer=False)
    assert refusal(model, lora, tmp_path) == (
        "the adapter was trained with 98 rows of tokens, and no tokenizer is beside it that tells which they are; put "
        "there the one that it was trained with"
    )


def test_an_adapter_of_the_models_own_tokens_is_the_one_it_was(tiny: Tiny, tmp_path: Path) -> None:
    """Its tokenizer, which it has beside it all the same, counts for nothing."""
    from evomerge_worker.store.pinned import content_digest

    model = tiny(seed=1)
    lora = write_adapter(tmp_path / "lora", Checkpoint.open(model, "a"), [QUERY])
    before = content_digest(adapted(model, lora, tmp_path).folder, code=False)
    write_tokenizer(lora, MORE)
    assert content_digest(adapted(model, lora, tmp_path).folder, code=False) == before


@pytest.mark.parametrize("tables", [(EMBEDDINGS, HEAD), ()], ids=["saved whole", "left as they are"])
def test_tokens_in_rows_that_were_padding_come_with_the_adapters_tokenizer(
    tiny: Tiny, tmp_path: Path, tables: tuple[str, ...]
) -> None:
    model = tiny(seed=1, vocab_size=len(MORE))
    lora = adapter(tmp_path / "lora", Checkpoint.open(model, "a"), *tables)
    made = adapted(model, lora, tmp_path)
    assert made.config["vocab_size"] == len(MORE)
    assert load_tokenizer(made, trust_remote_code=False).get_vocab()["<|im_end|>"] == len(MORE) - 1
    (tmp_path / "outlines").mkdir()
    store = Outline(Store(Storage(), tmp_path / "cache"), tmp_path / "outlines")
    source = Source(name="a", uri=model.as_uri(), adapter=lora.as_uri())
    seen = Checkpoint.open(source_folder(source, store, code=False), "a")
    assert "<|im_end|>" in load_tokenizer(seen, trust_remote_code=False).get_vocab()


def test_a_chat_template_alone_beside_an_adapter_is_no_tokenizer(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny(seed=1, vocab_size=len(MORE))
    lora = adapter(tmp_path / "lora", Checkpoint.open(model, "a"), tokenizer=False)
    (lora / "chat_template.jinja").write_text("{{ messages }}")
    assert "<|im_end|>" not in load_tokenizer(adapted(model, lora, tmp_path), trust_remote_code=False).get_vocab()
