"""Log-likelihoods, multiple choice and perplexity, against naive loops on tiny models of several families."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge_contract.manifest import Jsonl, Objective
from evomerge_contract.metrics import MetricName
from evomerge_contract.report import ItemScore
from evomerge_worker.errors import CandidateError, InputError
from evomerge_worker.evaluate.choices import MultipleChoice, _targets
from evomerge_worker.evaluate.evaluators import prepare_items
from evomerge_worker.evaluate.likelihood import Target, batches_of, log_likelihoods
from evomerge_worker.evaluate.metrics import aggregate
from evomerge_worker.evaluate.perplexity import Text
from evomerge_worker.evaluate.prompts import Setup
from scoring import score_items

Tiny = Callable[..., Path]
FAMILIES = ["llama", "gpt_neox", "gemma", "gemma2", "gpt2"]
SETUP = Setup(4, None, "objectives.o.test")
ITEMS = [
    MultipleChoice(1, "12+34=", ("46", "47", "4", "1234567"), right=0),
    MultipleChoice(2, "a long prompt, then:", (" yes", " no"), right=1, skill="words"),
    MultipleChoice(3, "7*8=", ("5", "6", "7"), right=2),
    MultipleChoice(4, "", ("abc", "def gh"), right=0),
    MultipleChoice(5, "x ", ("y", "z z z"), right=1),
    MultipleChoice(6, "9-1=", ("8", "eight", "nine", "10"), right=1),
]
TEXTS = [Text(1, "a"), Text(2, "hello world", skill="words"), Text(3, "12+34=46, 7*8=56"), Text(4, "z" * 40)]


def objective(metric: MetricName, **fields: Any) -> Objective:
    return Objective(name="o", jsonl=Jsonl(search="a", select="b", test="c"), metric=metric, **fields)


def opened(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():  # sharper than an initialisation, so that likelihoods differ
        for tensor in model.parameters():
            if tensor.dim() == 2:
                tensor.mul_(3)
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def llama(tiny: Tiny) -> tuple[Any, Any]:
    return opened(tiny("llama", seed=1))


def naive(model: Any, tokens: list[int], start: int) -> float:
    """Log-likelihood of tokens[start:], one forward of the bare sequence per token."""
    total = 0.0
    for position in range(start, len(tokens)):
        with torch.no_grad():
            logits = model(torch.tensor([tokens[:position]])).logits[0, -1].double()
        total += float(logits[tokens[position]] - logits.logsumexp(0))
    return total


def naive_choices(model: Any, tokenizer: Any, item: MultipleChoice) -> list[float]:
    bare = item.prompt.rstrip()
    prompt = tokenizer(bare).input_ids
    spaces = item.prompt[len(bare) :]
    choices = [tokenizer(spaces + choice, add_special_tokens=False).input_ids for choice in item.choices]
    return [naive(model, prompt + choice, len(prompt)) for choice in choices]


@pytest.mark.parametrize("family", FAMILIES)
def test_log_likelihoods_equal_a_naive_loop(tiny: Tiny, family: str) -> None:
    model, tokenizer = opened(tiny(family, seed=1))
    sequences = [(tokenizer(item.text).input_ids, 1) for item in TEXTS] + [(tokenizer("abc").input_ids, 3)]
    targets = [Target(tuple(tokens), start) for tokens, start in sequences]
    expected = [naive(model, tokens, start) for tokens, start in sequences]
    found = log_likelihoods(model, batches_of(targets, 2), len(targets), len(targets))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma"])
def test_the_likeliest_choice_is_the_models_plainly_and_by_length(tiny: Tiny, family: str) -> None:
    model, tokenizer = opened(tiny(family, seed=1))
    likelihoods = [naive_choices(model, tokenizer, item) for item in ITEMS]
    plain = [int(np.argmax(values)) for values in likelihoods]
    lengths = [[len(choice.strip()) for choice in item.choices] for item in ITEMS]
    by_length = [int(np.argmax(np.divide(v, n))) for v, n in zip(likelihoods, lengths, strict=True)]
    assert plain != by_length
    for metric, chosen in (("acc", plain), ("acc_norm", by_length)):
        for batch_size in (1, 3, 32):
            scores = score_items(model, tokenizer, objective(metric), ITEMS, batch_size)  # type: ignore[arg-type]
            expected = [float(c == item.right) for c, item in zip(chosen, ITEMS, strict=True)]
            assert [s.value for s in scores] == expected
            assert [s.skill for s in scores] == [item.skill for item in ITEMS]


def test_equally_likely_choices_go_to_the_lowest_index(tiny: Tiny) -> None:
    model, tokenizer = opened(tiny("llama", seed=1))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    items = [MultipleChoice(1, "a", ("b", "c"), right=0), MultipleChoice(2, "a", ("c", "b"), right=1)]
    assert [s.value for s in score_items(model, tokenizer, objective("acc"), items, 4)] == [1.0, 0.0]


def test_choices_of_one_token_share_one_row_of_input(llama: tuple[Any, Any]) -> None:
    targets = [Target((1, 5, 6, last), 3) for last in (7, 8, 9)] + [Target((1, 5, 6, 7, 8), 3)]
    rows = [tuple(row) for batch in batches_of(targets, 8) for row in batch.ids.tolist()]
    assert sorted(rows) == [(1, 5, 6, 0), (1, 5, 6, 7)]
    found = log_likelihoods(llama[0], batches_of(targets, 8), 4, 4)
    expected = [naive(llama[0], list(target.tokens), target.start) for target in targets]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def targets_of(tokenizer: Any, item: MultipleChoice, **fields: Any) -> list[Target]:
    return _targets(tokenizer, objective("acc", **fields), [item], SETUP)[0]


def test_spaces_between_prompt_and_choice_belong_to_the_choice_wherever_they_are_written(
    llama: tuple[Any, Any],
) -> None:
    tokenizer = llama[1]
    assert targets_of(tokenizer, MultipleChoice(1, "ab ", ("c", "d"), right=0)) == targets_of(
        tokenizer, MultipleChoice(1, "ab", (" c", " d"), right=0)
    )
    (first, _) = targets_of(tokenizer, MultipleChoice(1, "ab ", ("c", "d"), right=0))
    assert first.tokens[first.start :] == tuple(tokenizer(" c", add_special_tokens=False).input_ids)


def bpe() -> Any:
    """A tokenizer whose tokens reach over the end of a prompt: "ab" + "c" is one token, "ab" + "d" are two."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["</s>", "a", "b", "c", "d", "ab", "abc"])}
    model = models.BPE(vocab=vocabulary, merges=[("a", "b"), ("ab", "c")])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="</s>")  # noqa: S106


def test_a_choice_that_melts_into_the_prompt_is_compared_over_the_same_text() -> None:
    """After "d" + "ab" the choices "c" and "d" are the tokens (abc) and (ab, d): both are scored from there."""
    targets = targets_of(bpe(), MultipleChoice(1, "dab", ("c", "d"), right=0))
    assert targets == [Target((4, 6), 1), Target((4, 5, 4), 1)]
    assert targets_of(bpe(), MultipleChoice(1, "dab", ("d", "a"), right=0)) == [
        Target((4, 5, 4), 2),
        Target((4, 5, 1), 2),
    ]


def test_a_first_token_is_predicted_from_the_end_of_sequence_where_there_is_no_beginning() -> None:
    assert targets_of(bpe(), MultipleChoice(1, "ab", ("c", "d"), right=0)) == [Target((0, 6), 1), Target((0, 5, 4), 1)]
    assert targets_of(bpe(), MultipleChoice(1, "", ("c", "d"), right=0)) == [Target((0, 3), 1), Target((0, 4), 1)]
    bare = bpe()
    bare.eos_token = None
    with pytest.raises(InputError, match="line 1: nothing precedes the first token"):
        targets_of(bare, MultipleChoice(1, "", ("c", "d"), right=0))


def test_a_choice_without_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="line 7: choice 1 has no tokens"):
        targets_of(bpe(), MultipleChoice(7, "ab", ("d", "!"), right=0))


def test_in_a_chat_the_choice_is_the_models_message(tiny: Tiny) -> None:
    _, tokenizer = opened(tiny("llama", seed=1, chat_template=True))
    item = MultipleChoice(1, "a b", (" c", "d"), right=0)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a b"}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    bare = tokenizer(["c", "d"], add_special_tokens=False).input_ids
    assert targets_of(tokenizer, item) == [Target((*chat, *choice), len(chat)) for choice in bare]
    assert targets_of(tokenizer, item, chat_template=False)[0].tokens[0] == 1


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma"])
def test_perplexity_is_the_naive_definition(tiny: Tiny, family: str) -> None:
    model, tokenizer = opened(tiny(family, seed=1))
    expected = [
        ItemScore(value=-naive(model, tokenizer(i.text).input_ids, 1), count=len(i.text), skill=i.skill) for i in TEXTS
    ]
    found = score_items(model, tokenizer, objective("perplexity"), TEXTS, 2)
    assert [(s.count, s.skill) for s in found] == [(s.count, s.skill) for s in expected]
    assert [s.value for s in found] == pytest.approx([s.value for s in expected], rel=1e-5)
    whole = sum(s.value for s in expected) / sum(len(i.text) for i in TEXTS)
    assert aggregate("perplexity", found) == pytest.approx(math.exp(whole), rel=1e-5)


def test_without_a_beginning_token_the_first_token_is_only_read() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=7, initializer_range=0.5, **sizes)).eval()
    (score,) = score_items(model, bpe(), objective("perplexity"), [Text(1, "dabcb")], 2)
    assert score.count == 2
    assert score.value == pytest.approx(-naive(model, [4, 6, 2], 1), rel=1e-5)
    with pytest.raises(InputError, match="line 3: too short"):
        score_items(model, bpe(), objective("perplexity"), [Text(1, "dab"), Text(3, "abc")], 2)


def test_logits_are_made_batch_by_batch_and_only_where_they_are_needed(llama: tuple[Any, Any]) -> None:
    model, tokenizer = llama
    shapes = []
    hook = model.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.logits.shape)))
    try:
        items = [MultipleChoice(i, f"{i}, a fairly long prompt", ("71", "72", "81"), right=0) for i in range(1, 6)]
        score_items(model, tokenizer, objective("acc"), items, 4)
    finally:
        hook.remove()
    assert sum(rows for rows, _, _ in shapes) == 10  # two inputs an item: the prompt and "7", the prompt and "8"
    assert max(rows for rows, _, _ in shapes) == 4
    assert {columns for _, columns, _ in shapes} == {2}


def test_logits_are_widened_in_bounded_parts(llama: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = llama
    whole = score_items(model, tokenizer, objective("perplexity"), TEXTS, 4)
    monkeypatch.setattr("evomerge_worker.evaluate.likelihood._CHUNK", 3 * len(tokenizer))
    assert score_items(model, tokenizer, objective("perplexity"), TEXTS, 4) == whole


def test_the_same_weights_give_the_same_bits(tiny: Tiny) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny("llama", seed=1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    score = prepare_items(tokenizer, objective("perplexity"), TEXTS, 3)
    assert score(model) == score(model) == score_items(model, tokenizer, objective("perplexity"), TEXTS, 3)


@pytest.mark.parametrize("metric", ["acc", "perplexity"])
def test_likelihoods_that_are_not_finite_fail_the_candidate(tiny: Tiny, metric: MetricName) -> None:
    model, tokenizer = opened(tiny("llama", seed=1))
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    with pytest.raises(CandidateError) as caught:
        score_items(model, tokenizer, objective(metric), ITEMS if metric == "acc" else TEXTS, 4)
    assert caught.value.reason == "NotFinite"


@pytest.mark.parametrize("values", [[800.0], [1e308, 1e308]])
def test_a_figure_that_is_not_finite_fails_the_candidate(values: list[float]) -> None:
    with pytest.raises(CandidateError) as caught:
        aggregate("perplexity", [ItemScore(value=value, count=1.0) for value in values])
    assert caught.value.reason == "NotFinite"


def test_texts_longer_than_the_model_reads_are_refused_by_line(llama: tuple[Any, Any]) -> None:
    model, tokenizer = llama
    fits = Text(1, "a" * 64)  # with its beginning token one more, but the last token is never read
    score_items(model, tokenizer, objective("perplexity"), [fits], 4)
    with pytest.raises(InputError, match="line 2: 65 tokens, and the model reads 64"):
        score_items(model, tokenizer, objective("perplexity"), [fits, Text(2, "a" * 65)], 4)
    with pytest.raises(InputError, match="line 3: 65 tokens with its longest choice"):
        score_items(model, tokenizer, objective("acc"), [MultipleChoice(3, "a" * 60, ("b", "c" * 5), right=0)], 4)
