"""How a run ended, in the same words wherever it is told: terminal, status, report page and model card."""

from dataclasses import dataclass
from typing import Literal

from evomerge_contract.report import ConcludeResult, ScoreRow
from evomerge_contract.text import count, interval, listing, score, signed


@dataclass(frozen=True)
class Verdict:
    """What the test items show, and the sentences that say it.

    `finding`: the winner beats the best source (the 95 % interval of their difference lies above 0), is ahead of it
    but not beyond chance, or is not ahead. `unbeaten` are the plain average and the default merges that the winner is
    not shown to beat. `headline` answers whether it worked, `figures` gives the numbers, `masks` what other masks make
    of the winner (nothing where its method draws none).
    """

    finding: Literal["beats", "ahead", "behind"]
    unbeaten: tuple[str, ...]
    headline: str
    figures: str
    masks: tuple[str, ...]


def verdict_of(conclusion: ConcludeResult) -> Verdict:
    """How a run ended."""
    rivals = [row for row in conclusion.test if row.role in ("average", "default")]
    unbeaten = tuple(row.name for row in rivals if not _beaten(row))
    return Verdict(
        finding="beats" if conclusion.beats_best_source else "ahead" if conclusion.lead > 0 else "behind",
        unbeaten=unbeaten,
        headline=_headline(conclusion, rivals, unbeaten),
        figures=_figures(conclusion),
        masks=tuple(_masks(conclusion)),
    )


def in_one_sentence(conclusion: ConcludeResult) -> str:
    """How a run ended, as a condition's message: one sentence, without capital and full stop."""
    verdict = verdict_of(conclusion)
    text = f"{_continued(verdict.headline)}: {_continued(verdict.figures)}"
    chosen = conclusion.chosen
    if chosen is None or chosen.spread is None:
        return text
    text += f"; its scores on select items spread by {score(chosen.spread)} over mask seeds"
    return f"{text}, more than its lead" if conclusion.within_luck else text


def row_name(row: ScoreRow, conclusion: ConcludeResult) -> str:
    """A row's name in a table of text, with what a reader must know of it."""
    names = {
        "winner": winner_name(conclusion),
        "stage": f"winner of {row.name}",
        "source": f"source {row.name}",
        "base": "base (not in the pool)",
    }
    return names.get(row.role, row.name)


def winner_name(conclusion: ConcludeResult) -> str:
    """The winner's row: its stage where there are several, and its index."""
    return f"winner ({f'{conclusion.stage}, ' if conclusion.stage else ''}candidate {conclusion.winner})"


def difference(row: ScoreRow) -> str:
    """The winner's score minus this one, with its interval; nothing in the winner's own row."""
    if row.winner_minus is None or row.winner_minus_interval is None:
        return ""
    return f"{signed(row.winner_minus)} {interval(row.winner_minus_interval, sign=True)}"


def _beaten(row: ScoreRow) -> bool:
    return row.winner_minus_interval is not None and row.winner_minus_interval.low > 0


def _headline(conclusion: ConcludeResult, rivals: list[ScoreRow], unbeaten: tuple[str, ...]) -> str:
    source = f"the best source ({conclusion.best_source})"
    if not conclusion.beats_best_source:
        ahead = f"The winner is ahead of {source}, but not beyond chance."
        return ahead if conclusion.lead > 0 else f"Nothing beat {source}."
    if unbeaten:
        names, need = listing([_called(name) for name in unbeaten]), "needs" if len(unbeaten) == 1 else "need"
        return f"The winner beats {source}, but is not shown to beat {names}, which {need} no search."
    if conclusion.within_luck:
        return f"The winner beats {source}, but by less than its scores spread over mask seeds."
    return f"The winner beats {listing([source, *(_called(row.name) for row in rivals)])}."


def _called(baseline: str) -> str:
    """A baseline in a sentence: the plain average, the default DARE-TIES, but task arithmetic."""
    return f"the {baseline}" if baseline.startswith(("plain ", "default ")) else baseline


def _figures(conclusion: ConcludeResult) -> str:
    winner = next(row for row in conclusion.test if row.role == "winner")
    source = next(row for row in conclusion.test if row.role == "source" and row.name == conclusion.best_source)
    lead = difference(source)
    return (
        f"Candidate {conclusion.winner} scores {score(winner.score)} {interval(winner.interval)} on "
        f"{count(conclusion.test_items, 'test item')}, {source.name} {score(source.score)}"
        f"{f', a difference of {lead}' if lead else ''}."
    )


def _masks(conclusion: ConcludeResult) -> list[str]:
    chosen, seeds = conclusion.chosen, conclusion.mask_seeds
    if chosen is None or chosen.mask_scores is None or chosen.spread is None or not seeds:
        return []
    given = f"{count(len(seeds), 'mask seed')} ({listing([str(seed) for seed in seeds])})"
    scores = listing([score(value) for value in chosen.mask_scores])
    sentences = [
        f"With {given} the winner scores {scores} on select items: mean {score(chosen.score)}, spread "
        f"{score(chosen.spread)}. The exported weights have mask seed {seeds[0]}."
    ]
    if conclusion.within_luck:
        sentences.append(
            f"That spread is larger than the lead over the best source, {signed(conclusion.lead)}: the lead may be "
            "luck of the draw, and the recipe with another seed may have none."
        )
    return sentences


def _continued(sentence: str) -> str:
    """A sentence as a part of another one."""
    return sentence[0].lower() + sentence[1:].removesuffix(".")
