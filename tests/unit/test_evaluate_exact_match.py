"""Greedy answers and exact match, on tiny models of several families."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge_contract.manifest import Jsonl, Objective
from evomerge_worker.errors import CandidateError, InputError
from evomerge_worker.evaluate.clock import forward_time
from evomerge_worker.evaluate.evaluators import prepare_items
from evomerge_worker.evaluate.exact_match import Question
from evomerge_worker.evaluate.greedy import end_tokens, greedy, prompt_batch
from evomerge_worker.evaluate.prompts import context_of
from scoring import score_items
from tiny_models import write_tokenizer

Tiny = Callable[..., Path]
NEW = 6
PROMPTS = ["12+34=", "a", "7*8=", "hello world", "J34+57=", "abc", "xyz0", "E1+1=", "(9)", "Zz", "12+35=", "ab: "]
FAMILIES = ["llama", "gpt_neox", "gemma", "gemma2", "gpt2"]


def objective(**fields: Any) -> Objective:
    values = {"name": "o", "jsonl": Jsonl(search="a", select="b", test="c"), "metric": "exact_match"}
    return Objective(**(values | {"max_new_tokens": NEW} | fields))


def opened(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():  # sharper than an initialisation, so that greedy answers vary
        for tensor in model.parameters():
            if tensor.dim() == 2:
                tensor.mul_(4)
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def llama(tiny: Tiny) -> tuple[Any, Any]:
    return opened(tiny("llama", seed=1))


def alone(model: Any, tokenizer: Any, prompt: str, ends: list[int] | None = None, new: int = NEW) -> list[int]:
    """The greedy continuation of one prompt by transformers' generate, end token included."""
    from transformers import GenerationConfig

    ids = tokenizer(prompt, return_tensors="pt").input_ids
    plain = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=ends or [2], pad_token_id=0)
    tokens: list[int] = model.generate(input_ids=ids, generation_config=plain)[0, ids.shape[1] :].tolist()
    return tokens


def texts(model: Any, tokenizer: Any, prompts: list[str] = PROMPTS) -> list[str]:
    return [tokenizer.decode(alone(model, tokenizer, p), skip_special_tokens=True).strip() for p in prompts]


def right(model: Any, tokenizer: Any, answers: list[tuple[str, ...]], batch_size: int, **fields: Any) -> list[float]:
    items = [Question(line, p, answers=a) for line, (p, a) in enumerate(zip(PROMPTS, answers, strict=True), start=1)]
    return [score.value for score in score_items(model, tokenizer, objective(**fields), items, batch_size)]


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_answers_equal_generate_one_by_one(tiny: Tiny, family: str) -> None:
    model, tokenizer = opened(tiny(family, seed=1))
    expected = [alone(model, tokenizer, prompt) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in expected}) > len(PROMPTS) // 2, "the answers should differ"
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    assert greedy(model, prompt_batch(prompts, NEW), NEW, {2}) == [[t for t in e if t != 2] for e in expected]


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_exact_match_is_the_share_of_right_answers_whatever_the_batches(
    llama: tuple[Any, Any], batch_size: int
) -> None:
    answers = [(text,) if i % 3 else (text + "x",) for i, text in enumerate(texts(*llama))]
    assert right(*llama, answers, batch_size) == [float(i % 3 > 0) for i in range(len(PROMPTS))]


def test_any_of_the_accepted_texts_is_right(llama: tuple[Any, Any]) -> None:
    answers = [("no such text", text) for text in texts(*llama)]
    assert right(*llama, answers, 4) == [1.0] * len(PROMPTS)


def test_answers_stop_before_each_rows_end_token_and_a_batch_when_all_have_ended(llama: tuple[Any, Any]) -> None:
    model, tokenizer = llama
    full = [alone(model, tokenizer, prompt) for prompt in PROMPTS]
    ends = {tokens[i % 3] for i, tokens in enumerate(full)}
    expected = [tokens[: next(i for i, t in enumerate(tokens) if t in ends)] for tokens in full]
    assert {len(tokens) for tokens in expected} != {0}
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    with forward_time(model) as time:
        assert greedy(model, prompt_batch(prompts, NEW), NEW, ends) == expected
    assert time.calls == max(map(len, expected)) + 1 < NEW
    assert time.seconds > 0


def test_end_tokens_are_the_generation_configs_and_the_tokenizers(llama: tuple[Any, Any]) -> None:
    model, tokenizer = llama
    before = model.generation_config.eos_token_id
    try:
        for given, ends in (([7, 9], {2, 7, 9}), (7, {2, 7}), (None, {2})):
            model.generation_config.eos_token_id = given
            assert end_tokens(model, tokenizer) == ends
    finally:
        model.generation_config.eos_token_id = before


def test_a_generation_config_does_not_change_what_greedy_means(tiny: Tiny) -> None:
    model, tokenizer = opened(tiny("llama", seed=1))
    expected = [(text,) for text in texts(model, tokenizer)]
    model.generation_config.update(repetition_penalty=9.0, do_sample=True, temperature=5.0, max_length=3)
    assert right(model, tokenizer, expected, 4) == [1.0] * len(PROMPTS)


def test_models_with_a_cache_of_their_own_go_through_generate() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=8, initializer_range=0.5)
    model = MambaForCausalLM(config).eval()
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
    expected = [greedy(model, prompt_batch([prompt], NEW), NEW, set())[0] for prompt in prompts]
    naive = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(NEW):
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        naive.append(tokens[len(prompt) :])
    assert expected == naive
    ends = {naive[0][2]}
    cut = [tokens[: tokens.index(naive[0][2])] if naive[0][2] in tokens else tokens for tokens in naive]
    assert greedy(model, prompt_batch(prompts, NEW), NEW, ends) == cut
    with torch.no_grad():
        model.backbone.norm_f.weight[0] = torch.nan
    with pytest.raises(CandidateError):
        greedy(model, prompt_batch(prompts, NEW), NEW, ends)


@pytest.mark.parametrize(
    ("extract", "text_of"),
    [
        ("[^ ]", lambda text: text[-1]),
        (r"(\S)(\S)", lambda text: text[(len(text) - 2) - len(text) % 2]),
        ("no such thing", None),
    ],
    ids=["last match", "first group", "no match"],
)
def test_extract_takes_the_last_match(
    llama: tuple[Any, Any], extract: str, text_of: Callable[[str], str] | None
) -> None:
    found = texts(*llama)
    usable = [i for i, text in enumerate(found) if len(text) >= 2 and not re.search(r"\s", text)]
    assert usable
    answers = [(text_of(text),) if text_of and len(text) >= 2 else (text,) for text in found]
    scores = right(*llama, answers, 4, extract=extract)
    assert [scores[i] for i in usable] == [1.0 if text_of else 0.0] * len(usable)


def test_a_wrong_regular_expression_is_named(llama: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match=r"objectives\.o\.extract: not a regular expression"):
        right(*llama, [("a",)] * len(PROMPTS), 4, extract="(")


def test_logits_that_are_not_finite_fail_the_candidate(tiny: Tiny) -> None:
    for broken in (torch.nan, torch.inf):
        model, tokenizer = opened(tiny("llama", seed=1))
        with torch.no_grad():
            model.lm_head.weight[50] = broken
        with pytest.raises(CandidateError) as caught:
            right(model, tokenizer, [("a",)] * len(PROMPTS), 4)
        assert caught.value.reason == "NotFinite"


def test_prompts_longer_than_the_model_reads_are_all_named(llama: tuple[Any, Any]) -> None:
    model, tokenizer = llama
    assert context_of(model) == 64
    items = [
        Question(1, "a" * 20, answers=("b",)),
        Question(2, "c" * 58, answers=("b",)),
        Question(3, "d" * 90, answers=("b",)),
    ]
    with pytest.raises(InputError) as caught:
        prepare_items(tokenizer, objective(), items, 4, context=context_of(model), where="objectives.o.test")
    assert [(p.path, p.message[:17]) for p in caught.value.problems] == [
        ("objectives.o.test", "line 2: 65 tokens"),
        ("objectives.o.test", "line 3: 97 tokens"),
    ]


def test_items_are_prepared_once_and_scored_often(tiny: Tiny) -> None:
    """A scorer outlives changes of the weights, and the same weights give the same scores."""
    model, tokenizer = opened(tiny("llama", seed=1))
    items = [Question(1, p, answers=(a,), skill="s") for p, a in zip(PROMPTS, texts(model, tokenizer), strict=True)]
    score = prepare_items(tokenizer, objective(), items, 4)
    first = score(model)
    assert [s.value for s in first] == [1.0] * len(items)
    assert {s.skill for s in first} == {"s"}
    with torch.no_grad():
        model.lm_head.weight.neg_()
    assert sum(s.value for s in score(model)) < len(items)
    with torch.no_grad():
        model.lm_head.weight.neg_()
    assert score(model) == first


@pytest.mark.parametrize("begin", ["", "{{ bos_token }}"], ids=["without bos", "with bos"])
def test_chat_prompts_are_what_the_template_says_with_no_second_bos(tiny: Tiny, begin: str) -> None:
    model, tokenizer = opened(tiny("llama", seed=1, chat_template=True))
    tokenizer.chat_template = begin + tokenizer.chat_template
    answers = []
    for prompt in PROMPTS:
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert chat.count(1) == (1 if begin else 0)
        tokens = greedy(model, prompt_batch([chat], NEW), NEW, {2})[0]
        answers.append((tokenizer.decode(tokens, skip_special_tokens=True).strip(),))
    assert right(model, tokenizer, answers, 4) == [1.0] * len(PROMPTS)
    plain = right(model, tokenizer, answers, 4, chat_template=False)
    assert plain == [float(a == (t,)) for a, t in zip(answers, texts(model, tokenizer), strict=True)]
    assert sum(plain) < len(PROMPTS)


def test_a_template_that_refuses_a_lone_user_message_is_bad_input(tiny: Tiny) -> None:
    model, tokenizer = opened(tiny("llama", seed=1, chat_template=True))
    tokenizer.chat_template = "{{ raise_exception('a system message first') }}"
    with pytest.raises(InputError, match=r"a system message first.*chatTemplate: false"):
        right(model, tokenizer, [("a",)] * len(PROMPTS), 4)


def test_an_end_of_sequence_that_the_tokenizer_adds_is_not_part_of_the_prompt(
    llama: tuple[Any, Any], tmp_path: Path
) -> None:
    import json

    from transformers import AutoTokenizer

    model, tokenizer = llama
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    saved = json.loads(path.read_text())
    saved["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    saved["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    path.write_text(json.dumps(saved))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    ending = AutoTokenizer.from_pretrained(tmp_path)
    assert ending("ab").input_ids[-1] == 2
    assert right(model, ending, [(text,) for text in texts(model, tokenizer)], 4) == [1.0] * len(PROMPTS)
