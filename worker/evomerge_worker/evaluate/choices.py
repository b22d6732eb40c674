"""acc and acc_norm: the choice that the model finds likeliest is the right one.

As in EleutherAI's lm-evaluation-harness: acc compares log-likelihoods of the choices as continuations of the prompt,
acc_norm divides each by the choice's length in characters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge_contract.manifest import Objective
from evomerge_contract.report import ItemScore
from evomerge_worker.evaluate.likelihood import Target, batches_of, log_likelihoods
from evomerge_worker.evaluate.lines import Fields, as_text, brief, required, skill_of, text_of
from evomerge_worker.evaluate.metrics import Scorer
from evomerge_worker.evaluate.prompts import (
    Setup,
    as_chat,
    check_lengths,
    encode,
    has_chat,
    leading_tokens,
    refuse,
)


@dataclass(frozen=True, slots=True)
class MultipleChoice:
    """A prompt and its choices; `right` is the index of the right one."""

    line: int
    prompt: str
    choices: tuple[str, ...]
    right: int
    skill: str | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """The prompt with its choices in any order."""
        return (self.prompt.strip(), *sorted(self.choices))


def item(line: int, fields: Fields) -> MultipleChoice:
    """The question in `{"prompt", "choices", "answer"}`; the answer is the index of the right choice.

    Raises:
        ValueError: what is wrong with the fields.
    """
    prompt = text_of(fields, "prompt", may_be_empty=True)
    given = required(fields, "choices", "a list of texts")
    if not isinstance(given, list) or len(given) < 2:
        raise ValueError(f'"choices" is {brief(given)}; give a list of at least two texts')
    choices = tuple(as_text(choice, "choices") for choice in given)
    right = required(fields, "answer", "the index of the right choice")
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(choices):
        raise ValueError(f'"answer" is {brief(right)}; give the index of the right choice, 0 to {len(choices) - 1}')
    if choices.count(choices[right]) > 1:
        raise ValueError(f'"choices" holds the right choice, {brief(choices[right])}, more than once')
    return MultipleChoice(line, prompt, choices, right, skill_of(fields))


def prepare(tokenizer: Any, objective: Objective, items: Sequence[MultipleChoice], setup: Setup) -> Scorer:
    """Tokenise every choice after its prompt and lay out the batches; the scorer gives 1.0 (right) or 0.0 an item.

    Equal choices: the lowest index is the model's.

    Raises:
        InputError: items that are too long, choices without tokens.
    """
    targets = _targets(tokenizer, objective, items, setup)
    batches = batches_of([target for of_item in targets for target in of_item], setup.batch_size)
    ends = np.cumsum([len(item.choices) for item in items])
    lengths = np.array([_characters(choice) for item in items for choice in item.choices], dtype=float)
    divisor = lengths if objective.metric == "acc_norm" else np.ones_like(lengths)

    def score(model: Any) -> list[ItemScore]:
        likelihoods = np.split(log_likelihoods(model, batches, len(divisor), len(items)) / divisor, ends[:-1])
        return [
            ItemScore(value=float(int(np.argmax(choices)) == item.right), skill=item.skill)
            for choices, item in zip(likelihoods, items, strict=True)
        ]

    return score


def _characters(choice: str) -> int:
    """Length of a choice; spaces before it only part it from the prompt."""
    return len(choice.lstrip())


def _targets(tokenizer: Any, objective: Objective, items: Sequence[MultipleChoice], setup: Setup) -> list[list[Target]]:
    if has_chat(tokenizer, objective):
        contexts = as_chat(tokenizer, [item.prompt for item in items], setup.where)
        pairs = [(c, [choice.lstrip() for choice in item.choices]) for c, item in zip(contexts, items, strict=True)]
        leading: list[int] = []
    else:
        pairs = [_parted(item) for item in items]
        leading = leading_tokens(tokenizer, pairs[0][0] + pairs[0][1][0])
    contexts_tokens = encode(tokenizer, [context for context, _ in pairs], leading)
    wholes = iter(encode(tokenizer, [context + choice for context, choices in pairs for choice in choices], leading))
    targets = [
        _split(context, [next(wholes) for _ in item.choices], tokenizer)
        for context, item in zip(contexts_tokens, items, strict=True)
    ]
    refuse(
        [
            f"line {item.line}: choice {index} has no tokens in this tokenizer"
            if target.start
            else f"line {item.line}: nothing precedes the first token, and the tokenizer has no token to begin with"
            for item, of_item in zip(items, targets, strict=True)
            for index, target in enumerate(of_item)
            if target.start >= len(target.tokens) or not target.start
        ],
        setup,
    )
    longest = [max(len(target.tokens) for target in of_item) - 1 for of_item in targets]
    check_lengths(items, longest, setup, " with its longest choice")
    return targets


def _parted(item: MultipleChoice) -> tuple[str, list[str]]:
    """Prompt and choices, with spaces at the prompt's end moved to the choices: tokens begin with a space, not end."""
    context = item.prompt.rstrip()
    spaces = item.prompt[len(context) :]
    return context, [spaces + choice for choice in item.choices]


def _split(context: list[int], wholes: list[list[int]], tokenizer: Any) -> list[Target]:
    """The choices of one item: what follows the context's tokens.

    Where a choice melts into the prompt's last tokens, those are scored too, for every choice alike, so that all
    likelihoods are of the same text. The first token of all needs one before it: begin or end of sequence.
    """
    start = min(_common(context, whole) for whole in wholes)
    if start == 0:
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if first is not None:
            return [Target((first, *whole), 1) for whole in wholes]
    return [Target(tuple(whole), start) for whole in wholes]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))
