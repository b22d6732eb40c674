"""Whether the models can take the items: tokens, chat template and lengths, before any candidate meets them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evomerge_contract.manifest import BASE, Objective
from evomerge_contract.recipe import Recipe
from evomerge_worker.evaluate.evaluators import prepare_items
from evomerge_worker.evaluate.items import Item
from evomerge_worker.evaluate.prompts import context_of_config
from evomerge_worker.merge.slices import anchor_of
from evomerge_worker.merge.vocabulary import Vocabularies
from evomerge_worker.prepare.mistakes import Mistakes
from evomerge_worker.prepare.sources import Opened
from evomerge_worker.shards.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Reader:
    """The tokenizers that items will meet, and the longest input that every source takes."""

    tokenizers: Sequence[Any]
    context: int | None
    batch_size: int

    def check(self, objective: Objective, items: Sequence[Item], where: str) -> None:
        """Prepare the items of a split as a session does, and forget them.

        Raises:
            InputError: items that cannot be taken, by line; an extract that is no regular expression.
        """
        for tokenizer in self.tokenizers:
            prepare_items(tokenizer, objective, items, self.batch_size, context=self.context, where=where)


def reader_of(
    sources: Sequence[Opened], mistakes: Mistakes, recipe: Recipe, *, code: bool, batch_size: int
) -> Reader | None:
    """The reader for `sources`; None if the first model of the pool, or a vocabulary, must be mended first.

    Items meet the first model's tokenizer; where `recipe`, a merge of all, names a vocabulary or a chat template, the
    result's and that of each source, which is scored with its own.
    Each source is scored by itself in the end, so that the shortest context among them is what counts.
    """
    first = next((source for source in sources if source.name != BASE), None)
    if first is None or first.checkpoint is None or any(p.path == first.where for p in mistakes.found):
        return None
    of_result = recipe.vocabulary is not None or recipe.chat_template is not None
    if of_result and any(source.vocabulary is None for source in sources):
        return None
    contexts = [context_of_config(source.config) for source in sources if source.config is not None]
    with mistakes.collected():
        read = [first.checkpoint]
        if of_result:
            checkpoints = {source.name: source.checkpoint for source in sources if source.checkpoint is not None}
            aligned = Vocabularies(trust_remote_code=code).aligned(recipe, checkpoints)
            read = [aligned[anchor_of(recipe)], *checkpoints.values()] if len(aligned) == len(sources) else []
        tokenizers = [load_tokenizer(checkpoint, trust_remote_code=code) for checkpoint in read]
        return Reader(tokenizers, min((c for c in contexts if c is not None), default=None), batch_size)
    return None
