"""Ends of runs, by what the intervals of the winner's lead are."""

from typing import Any

from evomerge_contract.report import ConcludeResult, Interval, ScoreRow, SelectRow

Lead = tuple[float, float]


def ending(source: Lead, average: Lead | None = None, base: float = 0.3, spread: float | None = None) -> ConcludeResult:
    """An end in which the winner, candidate 3, scores 0.5, and its lead over the best source, and over the plain
    average, has these intervals. With a `spread`, its method draws masks and its select scores spread so far."""
    rows = [_row("winner", "winner", 0.5, None), _row("reader", "source", 0.5 - sum(source) / 2, source)]
    if average is not None:
        rows.append(_row("plain average", "average", 0.5 - sum(average) / 2, average))
    rows.append(_row("base", "base", base, (0.45 - base, 0.55 - base)))
    masks: dict[str, Any] = {}
    if spread is not None:
        masks = {"score": 0.5 + spread / 5, "mask_scores": [0.5, 0.5 + spread, 0.5, 0.5, 0.5], "spread": spread}
    return ConcludeResult(
        winner=3,
        select=[SelectRow(index=3, fitness=0.6, **{"score": 0.5} | masks)],
        test=rows,
        test_items=500,
        best_source="reader",
        beats_best_source=source[0] > 0,
        mask_seeds=[7, 8, 9, 10, 11] if masks else None,
    )


def _row(name: str, role: Any, score: float, lead: Lead | None) -> ScoreRow:
    return ScoreRow(
        name=name,
        role=role,
        score=score,
        interval=Interval(low=score - 0.04, high=score + 0.04),
        scores={},
        winner_minus=sum(lead) / 2 if lead else None,
        winner_minus_interval=Interval(low=lead[0], high=lead[1]) if lead else None,
    )
