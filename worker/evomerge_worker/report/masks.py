"""What other masks make of the winner: how much of its score was luck of the draw."""

from evomerge_contract.report import ConcludeResult
from evomerge_worker.report.text import count, listing, score, signed


def mask_sentences(conclusion: ConcludeResult) -> list[str]:
    """The winner's scores with all mask seeds, in words; none where its method draws no masks."""
    chosen, seeds = conclusion.chosen, conclusion.mask_seeds
    if chosen is None or chosen.mask_scores is None or chosen.spread is None or not seeds:
        return []
    given = f"{count(len(seeds), 'mask seed')} ({listing([str(seed) for seed in seeds])})"
    told = [
        f"The winner's method draws masks at random: with {given} it scores "
        f"{listing([score(s) for s in chosen.mask_scores])} on select items, {score(chosen.score)} on average with a "
        f"spread of {score(chosen.spread)}. The exported weights have seed {seeds[0]}."
    ]
    if conclusion.within_luck:
        told.append(
            f"The spread over masks is larger than the lead over the best source, {signed(conclusion.lead)}: these "
            "weights may owe their lead to the draw, and the recipe with another seed may have none."
        )
    return told
