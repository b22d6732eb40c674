"""The embeddings of single tokens that a recipe chooses: tokenizer.tokens."""

from collections.abc import Mapping

from evomerge_contract.recipe import TokenEmbedding, TokenOf
from evomerge_contract.report import Problem
from evomerge_worker.errors import InputError
from evomerge_worker.merge.rows import Choice
from evomerge_worker.merge.tokens import Tokens, quoted
from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.config_parts import token_rows


def chosen_rows(
    choices: Mapping[str, TokenEmbedding],
    tokens: Tokens,
    models: Mapping[str, Tokens],
    checkpoints: Mapping[str, Checkpoint],
) -> dict[int, Choice]:
    """What is chosen for rows of a result with the vocabulary `tokens`; `models` are those that are merged, by name.

    Raises:
        InputError: a model that is not merged, a token that its model does not know, a row that it does not have.
    """
    chosen: dict[int, Choice] = {}
    problems = []
    for token, embedding in choices.items():
        row: int | str = 0
        if embedding.model is not None:
            row = _row(token, embedding, embedding.model, models, checkpoints)
        if isinstance(row, str):
            problems.append(Problem(path=f"recipe.tokenizer.tokens.{token}", message=row))
        else:
            chosen[tokens[token]] = Choice(embedding.model, row, embedding.force)
    if problems:
        raise InputError(*problems)
    return chosen


def _row(
    token: str,
    embedding: TokenEmbedding,
    model: str,
    models: Mapping[str, Tokens],
    checkpoints: Mapping[str, Checkpoint],
) -> int | str:
    """The row of `model` that is meant, or what is wrong with that."""
    if model not in models:
        return f"{model} is not among the models that are merged ({', '.join(models)})"
    source = embedding.source
    rows = token_rows(checkpoints[model].config) or 0
    if isinstance(source, TokenOf) and source.token_id is not None:
        if source.token_id < rows:
            return source.token_id
        return f"{model} has no row {source.token_id}; it has {rows}, from 0"
    wanted = source.token if isinstance(source, TokenOf) and source.token is not None else token
    row = models[model].get(wanted)
    if row is None or row >= rows:
        return f"{model} has no embedding of token {quoted(wanted)}; name a model that has, or {{kind: zero}}"
    return row
