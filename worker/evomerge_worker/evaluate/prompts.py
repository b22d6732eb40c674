"""From text to tokens: what the tokenizer puts first, chat templates, and the model's longest input."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evomerge_contract.manifest import Objective
from evomerge_worker.errors import InputError
from evomerge_worker.evaluate.items import Item, problems_of


@dataclass(frozen=True, slots=True)
class Setup:
    """How items are prepared: rows a batch, the model's longest input in tokens if it has one, the path of problems."""

    batch_size: int
    context: int | None
    where: str


def context_of(model: Any) -> int | None:
    """The longest input a model takes, in tokens; None where its positions have no end."""
    return context_of_config(model.config)


def context_of_config(config: Any) -> int | None:
    """The same from a model's configuration."""
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return longest if isinstance(longest, int) else None


def leading_tokens(tokenizer: Any, text: str) -> list[int]:
    """What the tokenizer puts before every text, mostly its beginning-of-sequence token; found by trying `text`.

    What it may add at the end (some add an end of sequence) is of no use before a continuation.
    """
    bare = encode(tokenizer, [text], [])[0]
    full = list(tokenizer(text, return_attention_mask=False, verbose=False).input_ids)
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []


def encode(tokenizer: Any, texts: Sequence[str], leading: Sequence[int]) -> list[list[int]]:
    """The tokens of each text after the `leading` ones."""
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [[*leading, *tokens] for tokens in encoded.input_ids]


def has_chat(tokenizer: Any, objective: Objective) -> bool:
    """Whether prompts are wrapped in a chat template."""
    return objective.chat_template and bool(getattr(tokenizer, "chat_template", None))


def as_chat(tokenizer: Any, prompts: Sequence[str], where: str) -> list[str]:
    """Each prompt as the user's message, up to where the model's answer begins.

    A template writes every special token itself, so nothing may be put before its text.

    Raises:
        InputError: the template refuses a lone user message.
    """
    from jinja2 import TemplateError

    try:
        return [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts
        ]
    except TemplateError as error:
        message = f"the model's chat template fails on a lone user message ({error}); set chatTemplate: false"
        raise InputError.at(where, message) from error


def check_lengths(items: Sequence[Item], lengths: Sequence[int], setup: Setup, also: str = "") -> None:
    """Refuse items that are longer than the model can read; `also` says what was counted besides the text.

    Raises:
        InputError: each item that is too long, by line.
    """
    if setup.context is None:
        return
    refuse(
        [
            f"line {item.line}: {length} tokens{also}, and the model reads {setup.context}; shorten or remove it"
            for item, length in zip(items, lengths, strict=True)
            if length > setup.context
        ],
        setup,
    )


def refuse(mistakes: Sequence[str], setup: Setup) -> None:
    """Raise InputError if there are mistakes."""
    if mistakes:
        raise InputError(*problems_of(mistakes, setup.where))


def batched(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of near-equal length, shortest first; equal lengths in their own order."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
