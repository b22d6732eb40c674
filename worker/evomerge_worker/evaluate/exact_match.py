"""exact_match: the model's greedy answer is one of the accepted texts."""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evomerge_contract.manifest import Objective
from evomerge_contract.report import ItemScore
from evomerge_worker import meter
from evomerge_worker.errors import InputError
from evomerge_worker.evaluate.greedy import end_tokens, greedy, prompt_batch
from evomerge_worker.evaluate.lines import Fields, as_text, required, skill_of, text_of
from evomerge_worker.evaluate.metrics import Scorer
from evomerge_worker.evaluate.prompts import (
    Setup,
    as_chat,
    batched,
    check_lengths,
    encode,
    has_chat,
    leading_tokens,
    refuse,
)


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and the accepted answers, any of which is right."""

    line: int
    prompt: str
    answers: tuple[str, ...]
    skill: str | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """The prompt."""
        return (self.prompt.strip(),)


def item(line: int, fields: Fields) -> Question:
    """The question in `{"prompt", "answer"}`; an answer is a text or a list of texts.

    Raises:
        ValueError: what is wrong with the fields.
    """
    prompt = text_of(fields, "prompt")
    given = required(fields, "answer", "text or a list of accepted texts")
    answers = tuple(as_text(answer, "answer") for answer in (given if isinstance(given, list) else [given]))
    if not answers:
        raise ValueError('"answer" is an empty list; give at least one accepted text')
    return Question(line, prompt, tuple(answer.strip() for answer in answers), skill_of(fields))


def prepare(tokenizer: Any, objective: Objective, items: Sequence[Question], setup: Setup) -> Scorer:
    """Tokenise the prompts and lay out the batches; the scorer gives 1.0 (right) or 0.0 an item.

    Raises:
        InputError: prompts that are too long or without tokens, a wrong regular expression.
    """
    pattern = _compiled(objective)
    texts = [item.prompt for item in items]
    if has_chat(tokenizer, objective):
        prompts = encode(tokenizer, as_chat(tokenizer, texts, setup.where), [])
    else:
        prompts = encode(tokenizer, texts, leading_tokens(tokenizer, texts[0]))
    refuse(
        [
            f"line {item.line}: the prompt has no tokens in this tokenizer"
            for item, tokens in zip(items, prompts, strict=True)
            if not tokens
        ],
        setup,
    )
    new_tokens = objective.max_new_tokens
    lengths = [len(prompt) for prompt in prompts]
    check_lengths(
        items, [n + new_tokens for n in lengths], setup, f" with the {new_tokens} of the answer (maxNewTokens)"
    )
    order = batched(lengths, setup.batch_size)
    batches = [prompt_batch([prompts[i] for i in indices], new_tokens) for indices in order]

    def score(model: Any) -> list[ItemScore]:
        ends = end_tokens(model, tokenizer)
        right = [False] * len(items)
        for indices, batch in zip(order, batches, strict=True):
            answers = greedy(model, batch, new_tokens, ends)
            texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
            for index, text in zip(indices, texts, strict=True):
                right[index] = _extracted(text, pattern) in items[index].answers
            meter.items(len(indices))
        return [ItemScore(value=float(ok), skill=item.skill) for ok, item in zip(right, items, strict=True)]

    return score


def _compiled(objective: Objective) -> re.Pattern[str] | None:
    try:
        return re.compile(objective.extract) if objective.extract is not None else None
    except re.error as error:
        message = f"not a regular expression: {error}"
        raise InputError.at(f"objectives.{objective.name}.extract", message) from None


def _extracted(text: str, pattern: re.Pattern[str] | None) -> str | None:
    """The answer in a generated text: its last match (the first group of it, if there are groups), or all of it."""
    if pattern is None:
        return text.strip()
    matches = deque(pattern.finditer(text), maxlen=1)
    found: str | None = matches[0][1 if pattern.groups else 0] if matches else None
    return found.strip() if found is not None else None
