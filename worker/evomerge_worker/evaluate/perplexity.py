"""perplexity: how surprised the model is by a text, exp(negative log-likelihood / tokens)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evomerge_contract.manifest import Objective
from evomerge_contract.report import ItemScore
from evomerge_worker.evaluate.likelihood import Target, batches_of, log_likelihoods
from evomerge_worker.evaluate.lines import Fields, skill_of, text_of
from evomerge_worker.evaluate.metrics import Scorer
from evomerge_worker.evaluate.prompts import Setup, check_lengths, encode, leading_tokens, refuse


@dataclass(frozen=True, slots=True)
class Text:
    """A text to read."""

    line: int
    text: str
    skill: str | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """The text."""
        return (self.text.strip(),)


def item(line: int, fields: Fields) -> Text:
    """The text in `{"text"}`.

    Raises:
        ValueError: what is wrong with the fields.
    """
    return Text(line, text_of(fields, "text"), skill_of(fields))


def prepare(tokenizer: Any, objective: Objective, items: Sequence[Text], setup: Setup) -> Scorer:
    """Tokenise the texts (never as chat) and lay out the batches.

    The scorer gives each text's negative log-likelihood in nats and its number of predicted tokens. The first token
    is predicted where the tokenizer puts a beginning before it, else it is only read.

    Raises:
        InputError: texts that are too long, or leave nothing to predict.
    """
    texts = [item.text for item in items]
    leading = leading_tokens(tokenizer, texts[0])
    targets = [Target(tuple(tokens), max(1, len(leading))) for tokens in encode(tokenizer, texts, leading)]
    refuse(
        [
            f"line {item.line}: too short, it has no token that could be predicted"
            for item, target in zip(items, targets, strict=True)
            if len(target.tokens) <= target.start
        ],
        setup,
    )
    check_lengths(items, [len(target.tokens) - 1 for target in targets], setup)
    batches = batches_of(targets, setup.batch_size)

    def score(model: Any) -> list[ItemScore]:
        likelihoods = log_likelihoods(model, batches, len(targets), len(items)).tolist()
        return [
            ItemScore(value=-value, count=len(target.tokens) - target.start, skill=item.skill)
            for value, target, item in zip(likelihoods, targets, items, strict=True)
        ]

    return score
