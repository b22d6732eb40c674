"""The tokens of models: read, compared, united."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.config_parts import token_rows

Tokens = dict[str, int]
"""Token to id, in the order of the ids."""

_LEAST_SHARED = 0.01  # byte-level and SentencePiece vocabularies share single letters, and those say nothing
_SHOWN = 3


def tokens_of(tokenizer: Any) -> Tokens:
    """All tokens of a transformers tokenizer, added ones included."""
    return dict(sorted(tokenizer.get_vocab().items(), key=lambda pair: (pair[1], pair[0])))


def rowed(tokens: Tokens, rows: int | None) -> Tokens:
    """Those of `tokens` that embeddings of so many `rows` have one for."""
    return tokens if rows is None else {token: number for token, number in tokens.items() if number < rows}


def row_mistake(checkpoint: Checkpoint, tokenizer: Any) -> str | None:
    """The words for a tokenizer that has learnt a token without a row; None if all is well."""
    rows, tokens = token_rows(checkpoint.config), tokens_of(tokenizer)
    return without_row(tokens, tokenizer.get_added_vocab(), rows, needed=False)


def without_row(tokens: Tokens, added: Collection[str], rows: int | None, *, needed: bool) -> str | None:
    """The words for a token whose id the embeddings, of so many `rows`, have none for; None if there is none.

    One that the tokenizer has learnt shows that it is another model's. Those that were `added` to it may go without, as
    padding tokens often do, unless rows are `needed` for all.
    """
    beyond = {token: number for token, number in tokens.items() if rows is not None and number >= rows}
    learnt = {token: number for token, number in beyond.items() if token not in added}
    if not learnt and not (beyond and needed):
        return None
    token, number = max((learnt or beyond).items(), key=lambda pair: pair[1])
    said = f"its tokenizer has token {quoted(token)} with id {number}, but vocab_size in config.json is {rows}"
    if learnt:
        return f"{said}: the tokenizer is that of another model"
    return f"{said}: remove the token from the tokenizer, or give it a row (transformers' resize_token_embeddings)"


def difference(tokens: Mapping[str, int], other: Mapping[str, int], other_name: str) -> str | None:
    """In what the vocabulary `tokens` differs from `other`, with the first tokens; None if it does not."""
    differing = {token for token, _ in tokens.items() ^ other.items()}
    if not differing:
        return None
    first = sorted(differing, key=lambda t: (other.get(t, len(other)), t))[:_SHOWN]
    examples = ", ".join(_example(token, tokens.get(token), other.get(token)) for token in first)
    more = f", and {len(differing) - len(first)} more differ" if len(differing) > len(first) else ""
    return (
        f"the vocabulary ({_counted(tokens)}) is not that of {other_name} ({_counted(other)}): {examples}{more}; "
        "set tokenizer_source (in a manifest spec.tokenizerSource) to union, base or the name of the model whose "
        "tokens the result is to have"
    )


def _counted(tokens: Mapping[str, int]) -> str:
    return f"{len(tokens)} token{'' if len(tokens) == 1 else 's'}"


def _example(token: str, ours: int | None, theirs: int | None) -> str:
    if ours is None:
        return f"token {quoted(token)} (id {theirs} there) is missing here"
    if theirs is None:
        return f"token {quoted(token)} (id {ours} here) is missing there"
    return f"token {quoted(token)} has id {ours} here and {theirs} there"


def overlap_mistake(tokens: Tokens, other: Tokens, other_name: str, special: set[str]) -> str | None:
    """The words for two vocabularies that have too little in common to be aligned; None if they have enough.

    Special tokens, of which most models have the same few, do not count.
    """
    ours, theirs = tokens.keys() - special, other.keys() - special
    shared = len(ours & theirs)
    if shared >= _LEAST_SHARED * min(len(ours), len(theirs)):
        return None
    return (
        f"its tokenizer shares {shared} of its {len(ours)} tokens with that of {other_name}, which has {len(theirs)}: "
        "embeddings of tokens that the other model does not know cannot be merged; choose models whose tokenizers "
        "descend from one another"
    )


def special_tokens(tokenizer: Any) -> set[str]:
    """The tokens that text never contains: beginning, end, padding and the like."""
    return {added.content for added in tokenizer.added_tokens_decoder.values() if added.special}


def unite(first: Any, others: Sequence[Any]) -> bool:
    """Add to the tokenizer `first` what `others` have besides; whether it changed.

    Their tokens follow its own as added tokens, model by model in the order of the ids: first those that the models
    learnt, then the ones that had been added to them, with their settings. So mergekit does it, but for the order,
    which it leaves to chance.
    """
    before = (tokens_of(first), dict(first.added_tokens_decoder))
    added: dict[str, Any] = {}
    for tokenizer in (first, *others):
        for _, token in sorted(tokenizer.added_tokens_decoder.items()):
            added.setdefault(token.content, token)
    learnt = {token: None for tokenizer in others for token in tokens_of(tokenizer) if token not in before[0]}
    first.add_tokens([token for token in learnt if token not in added])
    first.add_tokens(list(added.values()))
    return (tokens_of(first), dict(first.added_tokens_decoder)) != before


def quoted(token: str) -> str:
    """A token as it may stand in a sentence."""
    return json.dumps(token, ensure_ascii=False)
