"""Models of differing vocabularies: whose tokens the result has, and where each of its rows comes from."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from evomerge_contract.recipe import Recipe
from evomerge_worker.errors import InputError
from evomerge_worker.merge import Merger, export_checkpoint, plan_merge
from evomerge_worker.merge.rows import Choice, rearranged, rows_by_number, rows_by_token
from evomerge_worker.merge.tokens import tokens_of
from evomerge_worker.merge.vocabulary import Vocabularies
from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.token_rows import row_tensors
from evomerge_worker.shards.tokenizer import load_tokenizer
from tiny_models import FAMILIES, SPECIALS, VOCABULARY, Tiny
from vocabularies import ENGLISH, ITALIAN, OF_A, OF_B, OF_BASE, byte_pair_checkpoint

EMBEDDINGS = "model.embed_tokens.weight"


@pytest.fixture
def sources(tiny: Tiny) -> dict[str, Checkpoint]:
    vocabularies = {"base": OF_BASE, "a": OF_A, "b": OF_B}
    return {
        name: Checkpoint.open(tiny(seed=seed, vocabulary=vocabulary), name)
        for seed, (name, vocabulary) in enumerate(vocabularies.items())
    }


def _recipe(*models: str, **keys: Any) -> Recipe:
    named = [{"model": model, "parameters": {"weight": 1.0}} for model in models]
    return Recipe.model_validate({"merge_method": "linear", "models": named, **keys})


def _ties(**keys: Any) -> Recipe:
    return _recipe("a", "b", merge_method="ties", base_model="base", **keys)


def _export(recipe: Recipe, sources: dict[str, Checkpoint], folder: Path) -> Checkpoint:
    export_checkpoint(recipe, sources, folder, mask_seed=0)
    return Checkpoint.open(folder, "out")


def _tokens(checkpoint: Checkpoint) -> dict[str, int]:
    return tokens_of(load_tokenizer(checkpoint, trust_remote_code=False))


def _refusals(recipe: Recipe, sources: dict[str, Checkpoint]) -> dict[str, str]:
    with pytest.raises(InputError) as caught:
        Vocabularies().aligned(recipe, sources)
    return {problem.path: problem.message for problem in caught.value.problems}


# Rows


def test_what_a_model_does_not_know_is_lent_as_mergekit_does() -> None:
    """From the only one that knows it, from the base, from all that know it, or from nobody."""
    models = {"base": {"x": 0}, "a": {"y": 0, "x": 1, "z": 2}, "b": {"z": 0}, "c": {}}
    tensors = {"base": [[1.0]], "a": [[2.0], [3.0], [4.0]], "b": [[6.0]], "c": [[9.0]]}
    rows = rows_by_token({"x": 0, "y": 1, "z": 2, "w": 3}, 5, models, ("base", "a", "b", "c"), "base")
    expected = {"base": [1, 2, 5, 0], "a": [3, 2, 4, 0], "b": [1, 2, 6, 0], "c": [1, 2, 5, 0]}
    for model, values in expected.items():
        result = rearranged(rows, model, lambda m: torch.tensor(tensors[m])).flatten().tolist()
        assert result == [*values, sum(values) / 4], model


def test_without_a_base_the_mean_of_all_that_know_a_token_is_lent() -> None:
    models = {"base": {"x": 0}, "a": {"x": 0}, "c": {}}
    tensors = {"base": [[1.0]], "a": [[3.0]], "c": [[9.0]]}
    rows = rows_by_token({"x": 0}, 1, models, ("base", "a", "c"), None)
    assert rearranged(rows, "c", lambda m: torch.tensor(tensors[m])).item() == 2


def test_who_does_not_take_part_lends_nothing() -> None:
    models = {"a": {"x": 0}, "b": {"y": 0}}
    rows = rows_by_token({"x": 0, "y": 1}, 2, models, ("a",), None)
    assert rearranged(rows, "a", lambda _: torch.tensor([[5.0]])).flatten().tolist() == [5, 0]


def test_means_are_taken_in_float32_and_single_rows_keep_their_dtype() -> None:
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    models = {"a": {"x": 0}, "b": {"x": 0}, "c": {"y": 0}}
    averaged = rows_by_token({"x": 0, "y": 1}, 2, models, ("a", "b", "c"), None)
    tensors = {"a": one, "b": one * 1.0078125, "c": one}
    assert rearranged(averaged, "c", tensors.__getitem__)[0].item() == 1.00390625  # between two of bfloat16
    assert rearranged(averaged, "a", tensors.__getitem__).dtype == torch.bfloat16


def test_a_model_that_has_the_rows_already_is_not_copied() -> None:
    tensor = torch.rand(3, 2)
    rows = rows_by_token({"x": 0, "y": 1}, 2, {"a": {"x": 0, "y": 1, "z": 2}}, ("a",), None)
    assert rearranged(rows, "a", lambda _: tensor).data_ptr() == tensor.data_ptr()


def test_a_chosen_row_goes_to_those_that_lack_it_and_a_forced_one_to_all() -> None:
    models = {"a": {"x": 0, "y": 1}, "b": {"y": 0, "z": 1}}
    tensors = {"a": [[1.0], [2.0]], "b": [[5.0], [6.0]]}
    choices = {0: Choice("b", 1, False), 1: Choice("a", 0, True), 2: Choice(None, 0, False), 3: Choice(None, 0, True)}
    rows = rows_by_token({"x": 0, "y": 1, "z": 2, "w": 3}, 5, models, ("a", "b"), "a", choices)
    for model, values in {"a": [1, 1, 0, 0], "b": [6, 1, 6, 0]}.items():
        result = rearranged(rows, model, lambda m: torch.tensor(tensors[m])).flatten().tolist()
        assert result == [*values, sum(values) / 4], model


def test_padding_is_cut_off_or_taken_from_the_filler() -> None:
    tensors = {"a": torch.tensor([[1.0], [2.0], [3.0]]), "b": torch.tensor([[4.0]]), "c": torch.ones(5, 1)}
    rows = rows_by_number(3, {"a": 3, "b": 1, "c": 5}, "a")
    assert rearranged(rows, "b", tensors.__getitem__).flatten().tolist() == [4, 2, 3]
    assert rearranged(rows, "c", tensors.__getitem__).flatten().tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("family", "config", "expected"),
    [
        ("llama", {}, {EMBEDDINGS, "lm_head.weight"}),
        ("llama-tied", {}, {EMBEDDINGS}),
        ("gpt2", {"n_positions": len(VOCABULARY)}, {"transformer.wte.weight"}),
        ("gpt_neox", {}, {"gpt_neox.embed_in.weight", "embed_out.weight"}),
        ("llama", {"hidden_size": len(VOCABULARY)}, {EMBEDDINGS, "lm_head.weight"}),
        ("bert", {"max_position_embeddings": len(VOCABULARY)},
         {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"}),
    ],
)  # fmt: skip
def test_tensors_with_a_row_per_token_are_found(
    tiny: Tiny, family: str, config: dict[str, Any], expected: set[str]
) -> None:
    """Also where positions, or the model's width, are as many by chance."""
    assert set(row_tensors(Checkpoint.open(tiny(family, **config), family))) == expected


# Whose tokens the result has


@pytest.mark.parametrize(
    ("source", "expected"),
    [("base", OF_BASE), ("b", OF_B), ("union", [*OF_BASE, *(t for t in (*OF_A, *OF_B) if t not in OF_BASE)])],
)
def test_the_result_has_the_tokens_of_its_source(
    sources: dict[str, Checkpoint], tmp_path: Path, source: str, expected: Sequence[str]
) -> None:
    """A union begins with the base's own, so that its numbers stay."""
    out = _export(_ties(tokenizer_source=source), sources, tmp_path / "out")
    tokens = _tokens(out)
    assert set(tokens) == set(expected)
    assert out.config["vocab_size"] == out.shape(EMBEDDINGS)[0] == out.shape("lm_head.weight")[0] == len(set(expected))
    if source == "union":
        assert list(tokens)[: len(OF_BASE)] == OF_BASE
    else:
        assert list(tokens) == list(expected)


def test_without_a_base_model_base_is_a_source_of_that_name_or_the_first(
    sources: dict[str, Checkpoint], tmp_path: Path
) -> None:
    recipe = _recipe("a", "b", tokenizer_source="base")
    assert list(_tokens(_export(recipe, sources, tmp_path / "named"))) == OF_BASE
    del sources["base"]
    assert list(_tokens(_export(recipe, sources, tmp_path / "first"))) == OF_A


def test_mergekits_longer_form_says_the_same(sources: dict[str, Checkpoint], tmp_path: Path) -> None:
    short = _export(_ties(tokenizer_source="b"), sources, tmp_path / "short")
    long = _export(_ties(tokenizer={"source": "b"}), sources, tmp_path / "long")
    assert all((long.folder / p.name).read_bytes() == p.read_bytes() for p in short.folder.iterdir())


def test_special_tokens_have_the_numbers_of_the_tokenizers_model(
    sources: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """In the config and in the generation config, of which all else is the base's."""
    for source, vocabulary in (("a", OF_A), ("union", OF_BASE)):
        out = _export(_ties(tokenizer_source=source), sources, tmp_path / source)
        generation = json.loads((out.folder / "generation_config.json").read_text())
        for name, token in zip(("pad", "bos", "eos"), SPECIALS, strict=False):
            assert out.config[f"{name}_token_id"] == generation[f"{name}_token_id"] == vocabulary.index(token)
        assert out.config["hidden_size"] == sources["base"].config["hidden_size"]


@pytest.mark.parametrize("source", ["union", "base", "a"])
def test_the_result_tokenises_and_generates(sources: dict[str, Checkpoint], tmp_path: Path, source: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = _export(_ties(tokenizer_source=source), sources, tmp_path / "out").folder
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(out)
    text = "1é<tool>ß" if source == "union" else "12 + 3"
    inputs = tokenizer(text, return_tensors="pt")
    assert tokenizer.unk_token_id not in inputs.input_ids
    assert tokenizer.decode(inputs.input_ids[0], skip_special_tokens=True) == text
    assert model.generate(**inputs, max_new_tokens=4).shape[1] > inputs.input_ids.shape[1]


def test_the_embeddings_of_a_token_only_one_model_knows_are_that_models(
    sources: dict[str, Checkpoint], tmp_path: Path
) -> None:
    out = _export(_ties(tokenizer_source="union"), sources, tmp_path / "out")
    row = out.tensor(EMBEDDINGS)[_tokens(out)["<tool>"]]
    assert torch.equal(row, sources["a"].tensor(EMBEDDINGS)[OF_A.index("<tool>")])


@pytest.mark.parametrize("source", ["union", "a", "b"])
def test_tokenizers_of_byte_pairs_survive_with_every_token(tmp_path: Path, source: str) -> None:
    """What is read from the export has the tokens and numbers that the rows were put in order by."""
    sources = {
        name: Checkpoint.open(byte_pair_checkpoint(tmp_path / name, "llama", texts, added), name)
        for name, texts, added in (("a", ENGLISH, []), ("b", ITALIAN, ["<|im_start|>"]))
    }
    out = _export(_recipe("a", "b", tokenizer_source=source), sources, tmp_path / "out")
    ours, of_a, of_b = _tokens(out), _tokens(sources["a"]), _tokens(sources["b"])
    assert ours.keys() == {"union": of_a.keys() | of_b.keys(), "a": of_a.keys(), "b": of_b.keys()}[source]
    assert list(ours.values()) == list(range(out.config["vocab_size"]))
    rows, rows_a, rows_b = (c.tensor(EMBEDDINGS) for c in (out, sources["a"], sources["b"]))
    for token, number in ours.items():
        mean = (rows_a[of_a.get(token, 0)].float() + rows_b[of_b.get(token, 0)].float()) / 2
        only = rows_a[of_a[token]] if token not in of_b else rows_b[of_b[token]] if token not in of_a else None
        assert torch.equal(rows[number], mean.bfloat16() if only is None else only), token
    tokenizer = load_tokenizer(out, trust_remote_code=False)
    assert tokenizer.decode(tokenizer("the lazy volpe 犬").input_ids) == "the lazy volpe 犬"


def test_added_tokens_stay_added_tokens(sources: dict[str, Checkpoint], tmp_path: Path) -> None:
    out = _export(_ties(tokenizer_source="union"), sources, tmp_path / "out")
    added = {t.content for t in load_tokenizer(out, trust_remote_code=False).added_tokens_decoder.values()}
    assert {*SPECIALS, "<tool>", "<think>"} <= added


def test_a_union_is_the_same_every_time(sources: dict[str, Checkpoint], tmp_path: Path) -> None:
    for name in ("one", "two"):
        _export(_ties(tokenizer_source="union"), sources, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in files)


def test_a_tied_head_that_only_some_sources_hold_is_no_misfit(tiny: Tiny, tmp_path: Path) -> None:
    from prepare_tasks import changed_weights

    def hold(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors[EMBEDDINGS].clone()

    folders = {"a": tiny("llama-tied", vocabulary=OF_A), "b": tiny("llama-tied", seed=1, vocabulary=OF_B)}
    for held in folders:
        folder = changed_weights(folders[held], tmp_path / held, hold)
        sources = {n: Checkpoint.open(folder if n == held else f, n) for n, f in folders.items()}
        out = _export(_recipe("a", "b", tokenizer_source="union"), sources, tmp_path / f"out-{held}")
        assert "lm_head.weight" not in out


def test_a_recipe_of_one_model_keeps_it_as_it_is(sources: dict[str, Checkpoint]) -> None:
    aligned = Vocabularies().aligned(_recipe("a", tokenizer_source="union"), sources)
    assert aligned["a"].folder == sources["a"].folder
    assert aligned["a"].tensor(EMBEDDINGS).data_ptr() == sources["a"].tensor(EMBEDDINGS).data_ptr()


def test_recipes_that_differ_in_the_base_of_a_slice_do_not_share_their_sources(sources: dict[str, Checkpoint]) -> None:
    """A token that all but one know is lent by the base that counts at this end of the layers."""
    layers = [{"model": name, "layer_range": [0, 4], "parameters": {"weight": 1}} for name in ("b", "a", "base")]
    token, vocabularies = "0", Vocabularies()
    for base in ("a", "base"):
        slices = [{"sources": layers, "base_model": base}]
        keys = {"merge_method": "task_arithmetic", "slices": slices, "tokenizer_source": "base"}
        aligned = vocabularies.aligned(Recipe.model_validate(keys), sources)
        vocabulary = {"a": OF_A, "base": OF_BASE}[base]
        lent = aligned["b"].tensor(EMBEDDINGS)[_tokens(aligned[base])[token]]
        assert torch.equal(lent.to(torch.bfloat16), sources[base].tensor(EMBEDDINGS)[vocabulary.index(token)])


def test_the_next_recipe_of_a_search_finds_the_sources_aligned(sources: dict[str, Checkpoint]) -> None:
    vocabularies = Vocabularies()
    first = vocabularies.aligned(_ties(tokenizer_source="union"), sources)
    assert vocabularies.aligned(_ties(tokenizer_source="union", parameters={"lambda": 0.5}), sources) is first
    assert vocabularies.aligned(_ties(tokenizer_source="base"), sources) is not first


# Padding


def test_one_vocabulary_padded_differently_needs_nobodys_work(tiny: Tiny, tmp_path: Path) -> None:
    """The result has the first model's rows; every token is merged, and padding is the first model's."""
    folders = {"a": tiny(seed=1, vocab_size=128), "b": tiny(seed=2), "c": tiny(seed=3, vocab_size=192)}
    sources = {name: Checkpoint.open(folder, name) for name, folder in folders.items()}
    out = _export(_recipe("a", "b", "c", out_dtype="float32"), sources, tmp_path / "out")
    assert out.config["vocab_size"] == 128
    tensors = [sources[name].tensor(EMBEDDINGS).float() for name in ("a", "b", "c")]
    tokens, padding = out.tensor(EMBEDDINGS)[:96], out.tensor(EMBEDDINGS)[96:]
    torch.testing.assert_close(tokens, sum(t[:96] for t in tensors) / 3)
    torch.testing.assert_close(padding, (2 * tensors[0][96:] + tensors[2][96:128]) / 3)


def test_masks_are_those_of_the_model_whatever_it_is_merged_with(tiny: Tiny) -> None:
    """Rows for the tokens of another model do not make it another one itself."""
    folders = {"base": tiny(), "a": tiny(seed=1), "b": tiny(seed=2, vocabulary=OF_B)}
    sources = {name: Checkpoint.open(folder, name) for name, folder in folders.items()}
    common = {"merge_method": "dare_linear", "base_model": "base", "tokenizer_source": "union"}
    models = {name: {"model": name, "parameters": {"weight": float(name == "a"), "density": 0.5}} for name in "ab"}
    results = []
    for others in ("a", "ab"):
        recipe = Recipe.model_validate(common | {"models": [models[name] for name in others]})
        aligned = Vocabularies().aligned(recipe, sources)
        results.append(dict(Merger(aligned, 7).merged(plan_merge(recipe, aligned))))
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        assert torch.equal(results[0][name], results[1][name]), name


def test_padding_of_the_base_gives_task_vectors_of_zero(tiny: Tiny) -> None:
    sources = {"base": Checkpoint.open(tiny(vocab_size=128), "base"), "a": Checkpoint.open(tiny(seed=1), "a")}
    recipe = _recipe("a", merge_method="task_arithmetic", base_model="base")
    aligned = Vocabularies().aligned(recipe, sources)
    result = dict(Merger(aligned, 0).merged(plan_merge(recipe, aligned)))[EMBEDDINGS]
    assert torch.equal(result[96:], sources["base"].tensor(EMBEDDINGS)[96:])
    assert torch.equal(result[:96], sources["a"].tensor(EMBEDDINGS))


def test_a_recipe_without_averages_keeps_the_dtype_of_its_sources(sources: dict[str, Checkpoint]) -> None:
    """And with them too: only what is computed in between is in float32."""
    recipe = _ties(tokenizer_source="union")
    aligned = Vocabularies().aligned(recipe, sources)
    assert {plan.dtype for plan in plan_merge(recipe, aligned)} == {torch.bfloat16}


# Refusals


def test_vocabularies_that_differ_are_refused_with_their_first_differences(sources: dict[str, Checkpoint]) -> None:
    del sources["base"]
    refusals = _refusals(_recipe("a", "b"), sources)
    assert refusals["models.b"].startswith(
        'the vocabulary (99 tokens) is not that of a (98 tokens): token "六" has id 92 here and 0 there, token "五" '
    )
    assert refusals["models.b"].endswith(
        "set tokenizer_source (in a manifest spec.tokenizerSource) to union, base or the name of the model whose "
        "tokens the result is to have"
    )


def test_a_vocabulary_with_two_tokens_more_is_not_padding(tiny: Tiny) -> None:
    folders = {"a": tiny(), "b": tiny(seed=1, vocabulary=[*VOCABULARY, "<tool>", "<think>"])}
    sources = {name: Checkpoint.open(folder, name) for name, folder in folders.items()}
    assert _refusals(_recipe("a", "b"), sources)["models.b"].startswith(
        'the vocabulary (98 tokens) is not that of a (96 tokens): token "<think>" (id 97 here) is missing there, '
        'token "<tool>" (id 96 here) is missing there; set'
    )


def test_tokenizers_without_overlap_are_refused(tiny: Tiny) -> None:
    greek = [*SPECIALS, *(chr(c) for c in range(0x3B1, 0x3C9))]
    folders = {"a": tiny(), "b": tiny(seed=1, vocabulary=greek)}
    sources = {name: Checkpoint.open(folder, name) for name, folder in folders.items()}
    assert _refusals(_recipe("a", "b", tokenizer_source="union"), sources) == {
        "models.b": "its tokenizer shares 0 of its 24 tokens with that of a, which has 92: embeddings of tokens that "
        "the other model does not know cannot be merged; choose models whose tokenizers descend from one another"
    }


def test_an_unknown_source_is_refused_with_what_it_may_be(sources: dict[str, Checkpoint]) -> None:
    assert _refusals(_ties(tokenizer_source="c"), sources) == {
        "recipe.tokenizer_source": "c is not among what it may be (union, base, a, b, base)"
    }


def test_a_tokenizer_of_another_model_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    """It knows numbers that the embeddings have no row for."""
    folder = Path(shutil.copytree(tiny(seed=1), tmp_path / "b"))
    shutil.copyfile(tiny(vocabulary=OF_A) / "tokenizer.json", folder / "tokenizer.json")
    sources = {"a": Checkpoint.open(tiny(), "a"), "b": Checkpoint.open(folder, "b")}
    refusals = _refusals(_recipe("a", "b", tokenizer_source="union"), sources)
    assert refusals["models.b"] == (
        'its tokenizer has token "ö" with id 96, but vocab_size in config.json is 96: the tokenizer is that of another '
        "model"
    )


def test_a_token_that_the_vocabulary_lacks_is_added_with_the_row_chosen_for_it(
    sources: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """The models' own embeddings of it are zero; every model gets the row, and so does their merge."""
    other = {"kind": "model_token", "model": "b", "token": "<s>"}
    tokens = {"<new>": {"source": other}, "<s>": {"source": {"kind": "zero"}, "force": True}}
    out = _export(_ties(tokenizer={"source": "base", "tokens": tokens}), sources, tmp_path / "out")
    number = _tokens(out)["<new>"]
    assert number == len(_tokens(sources["base"]))
    wanted = sources["b"].tensor(EMBEDDINGS)[_tokens(sources["b"])["<s>"]]
    torch.testing.assert_close(out.tensor(EMBEDDINGS)[number], wanted)
    assert not out.tensor(EMBEDDINGS)[_tokens(out)["<s>"]].any()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("c", "c is not among the models that are merged (base, a, b)"),
        ("a", 'a has no embedding of token "<new>"; name a model that has, or {kind: zero}'),
        ({"kind": "model_token", "model": "a", "token": "<x>"}, 'a has no embedding of token "<x>"; name a model'),
        ({"kind": "model_token", "model": "a", "token_id": 9999}, "a has no row 9999; it has "),
    ],
)
def test_a_row_that_is_not_there_is_refused_by_its_token(
    source: Any, words: str, sources: dict[str, Checkpoint]
) -> None:
    refusals = _refusals(_ties(tokenizer={"tokens": {"<new>": {"source": source}}}), sources)
    assert list(refusals) == ["recipe.tokenizer.tokens.<new>"]
    assert refusals["recipe.tokenizer.tokens.<new>"].startswith(words)


def test_what_a_recipe_may_not_say_of_tokenizers_is_refused_by_its_key() -> None:
    with pytest.raises(ValidationError, match="give either token or token_id"):
        _ties(tokenizer={"tokens": {"<s>": {"source": {"kind": "model_token", "model": "a"}}}})
    with pytest.raises(ValidationError, match="give either tokenizer_source or tokenizer, not both"):
        _ties(tokenizer={"source": "union"}, tokenizer_source="union")
    with pytest.raises(ValidationError, match=r"tokenizer\.pad_to_multiple_of"):
        _ties(tokenizer={"pad_to_multiple_of": 0})


def test_families_of_the_tests_all_have_a_vocabulary_axis(tiny: Tiny) -> None:
    for family in FAMILIES:
        assert row_tensors(Checkpoint.open(tiny(family), family)), family
