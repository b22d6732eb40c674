"""Models of differing vocabularies merged to one, against mergekit on the same recipe, token by token."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge_contract.recipe import Recipe
from evomerge_worker.merge import export_checkpoint
from evomerge_worker.merge.chat_template import TEMPLATES
from evomerge_worker.merge.tokens import tokens_of
from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.token_rows import row_tensors, token_rows
from evomerge_worker.shards.tokenizer import load_tokenizer
from oracle import Oracle, OracleError
from tiny_models import Tiny
from vocabularies import ENGLISH, ITALIAN, OF_A, OF_B, OF_BASE, byte_pair_checkpoint

RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "base": {"weight": 0.2}, "a": {"weight": 0.5}, "b": {"weight": 0.4}},
    "slerp": {"merge_method": "slerp", "base_model": "a", "a": None, "b": None, "all": {"t": [0.2, 0.7]}},
    "task_arithmetic": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "a": {"weight": 0.7},
        "b": {"weight": [{"filter": "embed", "value": 0.9}, {"value": 0.4}]},
    },
    "ties": {
        "merge_method": "ties",
        "base_model": "base",
        "a": {"weight": 0.7, "density": 0.4},
        "b": {"weight": 0.6, "density": 0.7},
    },
}


def _sources(tiny: Tiny, family: str, dtype: str, **config: Any) -> dict[str, Checkpoint]:
    vocabularies = {"base": OF_BASE, "a": OF_A, "b": OF_B}
    folders = {
        name: tiny(family, seed=seed, dtype=dtype, vocabulary=vocabulary, **config)
        for seed, (name, vocabulary) in enumerate(vocabularies.items())
    }
    return {name: Checkpoint.open(folder, str(folder)) for name, folder in folders.items()}


def _recipe(name: str, sources: dict[str, Checkpoint], out_dtype: str, **keys: Any) -> Recipe:
    """By path, which is what both sides call the models."""
    given = dict(RECIPES[name])
    models = [{"model": sources[m].name, "parameters": given.pop(m)} for m in sources if m in given]
    if "base_model" in given:
        given["base_model"] = sources[given["base_model"]].name
    parameters = given.pop("all", None)
    return Recipe.model_validate(
        {**given, "models": models, "parameters": parameters, "dtype": "float32", "out_dtype": out_dtype, **keys}
    )


def _check(oracle: Oracle, recipe: Recipe, sources: dict[str, Checkpoint], folder: Path) -> None:
    """Both sides carry `recipe` out; the same tokens must come out, with the same rows, and all else the same."""
    oracle(ask="merge", recipe=recipe.plain(), out=str(folder / "theirs"), masks=None)
    export_checkpoint(recipe, {c.name: c for c in sources.values()}, folder / "ours", mask_seed=0)
    ours, theirs = (Checkpoint.open(folder / side, side) for side in ("ours", "theirs"))
    tokens, their_tokens = (tokens_of(load_tokenizer(side, trust_remote_code=False)) for side in (ours, theirs))
    assert tokens.keys() == their_tokens.keys()
    assert token_rows(ours.config) == token_rows(theirs.config)
    assert ours.names == theirs.names
    by_token = set(row_tensors(ours))
    assert by_token
    for name in ours.names:
        tensor, other = ours.tensor(name), theirs.tensor(name)
        if name in by_token:
            tensor = torch.cat([tensor[list(tokens.values())], tensor[len(tokens) :]])
            other = torch.cat([other[[their_tokens[token] for token in tokens]], other[len(tokens) :]])
        assert tensor.dtype == other.dtype
        largest = max(float(c.tensor(name).abs().max()) for c in sources.values() if name in c)
        steps = torch.finfo(tensor.dtype).eps * other.double().abs()  # one rounding step at most
        allowed = torch.maximum(steps, torch.tensor(4 * torch.finfo(torch.float32).eps * largest))
        assert bool(((tensor.double() - other.double()).abs() <= allowed).all()), name


@pytest.mark.parametrize(
    ("name", "source"), [(n, s) for n in RECIPES for s in ("union", "base", "a") if (n, s) != ("linear", "base")]
)
def test_every_way_to_choose_a_vocabulary(oracle: Oracle, tiny: Tiny, tmp_path: Path, name: str, source: str) -> None:
    """Without a base_model mergekit leaves open whose vocabulary `base` is; ours is the first model's."""
    sources = _sources(tiny, "llama", "float32")
    wanted = sources[source].name if source == "a" else source
    _check(oracle, _recipe(name, sources, "bfloat16", tokenizer_source=wanted), sources, tmp_path)


@pytest.mark.parametrize("family", ["llama-tied", "mistral", "qwen2", "gemma2", "gpt2", "phi3"])
@pytest.mark.parametrize("source", ["union", "base"])
def test_other_families_tied_and_untied(oracle: Oracle, tiny: Tiny, tmp_path: Path, family: str, source: str) -> None:
    sources = _sources(tiny, family, "bfloat16")
    _check(oracle, _recipe("task_arithmetic", sources, "bfloat16", tokenizer_source=source), sources, tmp_path)


def test_a_slices_own_base_lends_what_its_others_do_not_know(oracle: Oracle, tiny: Tiny, tmp_path: Path) -> None:
    sources = _sources(tiny, "llama", "float32")
    layers = [{"model": c.name, "layer_range": [0, 4], "parameters": {"weight": 0.6}} for c in sources.values()]
    recipe = {
        "merge_method": "task_arithmetic",
        "slices": [{"sources": layers, "base_model": sources["base"].name}],
        "tokenizer_source": "union",
        "dtype": "float32",
    }
    _check(oracle, Recipe.model_validate(recipe), sources, tmp_path)


def test_padding_to_a_multiple_gets_the_mean_row(oracle: Oracle, tiny: Tiny, tmp_path: Path) -> None:
    sources = _sources(tiny, "llama", "float32")
    tokenizer = {"source": "union", "pad_to_multiple_of": 64}
    _check(oracle, _recipe("task_arithmetic", sources, "float32", tokenizer=tokenizer), sources, tmp_path)


def test_a_token_that_nobody_who_takes_part_knows_is_zero(oracle: Oracle, tiny: Tiny, tmp_path: Path) -> None:
    sources = _sources(tiny, "llama", "float32")
    recipe = _recipe("slerp", sources, "float32", tokenizer_source=sources["base"].name)
    _check(oracle, recipe, sources, tmp_path)


def test_padded_sources_lose_their_padding_to_a_vocabulary(oracle: Oracle, tiny: Tiny, tmp_path: Path) -> None:
    """As many rows as tokens come out, whatever the sources had."""
    sources = _sources(tiny, "llama", "float32")
    padded = tiny(dtype="float32", vocabulary=OF_BASE, vocab_size=128)
    sources["base"] = Checkpoint.open(padded, str(padded))
    _check(oracle, _recipe("ties", sources, "float32", tokenizer_source="base"), sources, tmp_path)


@pytest.mark.parametrize("source", ["union", "base", "b"])
def test_tokenizers_of_byte_pairs(oracle: Oracle, tmp_path: Path, source: str) -> None:
    """Which learnt their tokens from other texts, and whose embeddings are padded."""
    folders = {
        "base": byte_pair_checkpoint(tmp_path / "base", "qwen2", ENGLISH, dtype="float32"),
        "a": byte_pair_checkpoint(tmp_path / "a", "qwen2", ENGLISH, ["<|im_start|>"], seed=1, dtype="float32"),
        "b": byte_pair_checkpoint(tmp_path / "b", "qwen2", ITALIAN, ["<|im_start|>"], seed=2, dtype="float32"),
    }
    sources = {name: Checkpoint.open(folder, str(folder)) for name, folder in folders.items()}
    wanted = sources[source].name if source == "b" else source
    _check(oracle, _recipe("task_arithmetic", sources, "bfloat16", tokenizer_source=wanted), sources, tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_without_a_vocabulary_mergekit_refuses_embeddings_of_other_sizes(
    oracle: Oracle, tiny: Tiny, tmp_path: Path, name: str
) -> None:
    """It crops them only with --unsafe-truncate-embeddings. Ours sees to padding by itself, and refuses the rest."""
    folders = {"base": tiny(), "a": tiny(seed=1, vocab_size=128), "b": tiny(seed=2, vocab_size=192)}
    sources = {name: Checkpoint.open(folder, str(folder)) for name, folder in folders.items()}
    with pytest.raises(OracleError, match="Tensor size mismatch"):
        oracle(ask="merge", recipe=_recipe(name, sources, "bfloat16").plain(), out=str(tmp_path / "t"), masks=None)


TOKENS: dict[str, dict[str, Any]] = {
    "chosen": {"é": {"source": "a"}, "<new>": {"source": {"kind": "zero"}}},
    "forced": {"<s>": {"source": "b", "force": True}, "x": {"source": {"kind": "zero"}, "force": True}},
    "another": {
        "<new>": {"source": {"kind": "model_token", "model": "base", "token": "<s>"}},
        "x": {"source": {"kind": "model_token", "model": "b", "token_id": 7}, "force": True},
    },
}


@pytest.mark.parametrize(("name", "source"), [*((name, "union") for name in TOKENS), ("forced", "base")])
def test_embeddings_of_single_tokens(oracle: Oracle, tiny: Tiny, tmp_path: Path, name: str, source: str) -> None:
    """mergekit fails where it adds a token to the tokenizer of `base`."""
    sources = _sources(tiny, "llama", "float32")
    tokens: dict[str, Any] = {}
    for token, given in TOKENS[name].items():
        wanted = given["source"]
        if isinstance(wanted, str):
            wanted = sources[wanted].name
        elif "model" in wanted:
            wanted = wanted | {"model": sources[wanted["model"]].name}
        tokens[token] = given | {"source": wanted}
    tokenizer = {"source": source, "tokens": tokens, "pad_to_multiple_of": 8}
    _check(oracle, _recipe("task_arithmetic", sources, "float32", tokenizer=tokenizer), sources, tmp_path)


CHATS = [
    [("user", " hi there ")],
    [("system", "be brief\n"), ("user", "hi")],
    [("user", "hi"), ("assistant", "yes "), ("user", "why?")],
    [("system", "be brief"), ("user", "hi"), ("assistant", "yes"), ("user", "why?"), ("assistant", "so")],
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_by_name_give_the_same_texts(oracle: Oracle, tiny: Tiny, tmp_path: Path, name: str) -> None:
    sources = _sources(tiny, "llama", "float32")
    recipe = _recipe("linear", sources, "float32", tokenizer_source="union", chat_template=name)
    _check(oracle, recipe, sources, tmp_path)
    ours, theirs = (
        load_tokenizer(Checkpoint.open(tmp_path / side, side), trust_remote_code=False) for side in ("ours", "theirs")
    )
    for chat, prompted in product(CHATS, (False, True)):
        messages = [{"role": role, "content": content} for role, content in chat]
        options = {"tokenize": False, "add_generation_prompt": prompted}
        assert ours.apply_chat_template(messages, **options) == theirs.apply_chat_template(messages, **options)
