"""Did it work? The answer at the top of the report page and of the model card."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from evomerge_contract.manifest import EvoMergeSpec
from evomerge_contract.report import ConcludeResult, RunReport, ScoreRow
from evomerge_contract.text import count, score
from evomerge_contract.verdict import difference, verdict_of
from evomerge_worker.report.stage import stage_of


@dataclass(frozen=True)
class Answer:
    """`headline` answers in one sentence, `details` give the figures; `tone` is how it is shown."""

    tone: Literal["good", "mixed", "bad", "open"]
    headline: str
    details: list[str]


def answer(run: RunReport, spec: EvoMergeSpec) -> Answer:
    """How a run ended, or how far it is."""
    return unfinished(run, spec) if run.conclusion is None else concluded(run.conclusion)


def concluded(conclusion: ConcludeResult) -> Answer:
    """How a run ended."""
    verdict, rows = verdict_of(conclusion), conclusion.test
    winner = next(row for row in rows if row.role == "winner")
    details = [verdict.figures]
    details += [_rival(row) for row in rows if row.role == "average"]
    details += [_outside(row, winner) for row in rows if row.role == "base"]
    details += verdict.masks
    mixed = bool(verdict.unbeaten) or conclusion.within_luck
    return Answer("bad" if verdict.finding != "beats" else "mixed" if mixed else "good", verdict.headline, details)


def unfinished(run: RunReport, spec: EvoMergeSpec) -> Answer:
    """How far a run is that has not been concluded; search scores flatter, and the text says so."""
    budget = stage_of(run, spec).search.candidates
    done, failed = len(run.candidates), [c for c in run.candidates if c.fitness is None]
    scored = [c for c in run.candidates if c.fitness is not None]
    details = []
    if scored:
        best = max(scored, key=lambda c: (c.fitness or 0.0, -c.index))
        details.append(
            f"The best so far is candidate {best.index} with {score(best.fitness or 0.0)} on search items. These items "
            "chose it, so they flatter it: only select and test items, scored at the end, tell how good it is."
        )
    if failed:
        reason, most = Counter(c.reason or "Error" for c in failed).most_common(1)[0]
        often = "" if most == len(failed) else f"{count(most)} of them: "
        details.append(f"{count(len(failed), 'candidate')} failed ({often}{reason}).")
    if len(failed) > spec.budget.failures:
        headline = f"The search ended early: more candidates failed ({len(failed)}) than may ({spec.budget.failures})."
        return Answer("bad", headline, details)
    if done and not scored:
        return Answer("bad", f"Nothing has come out: all {count(done)} finished candidates failed.", details)
    if done >= budget:
        return Answer("open", "Not finished: the search is done, but the test items have not been scored.", details)
    return Answer("open", f"Not finished: {count(done)} of {count(budget)} candidates are done.", details)


def _rival(row: ScoreRow) -> str:
    lead = difference(row)
    return f"The {row.name} scores {score(row.score)}{f', a difference of {lead}' if lead else ''}."


def _outside(row: ScoreRow, winner: ScoreRow) -> str:
    than = "more than" if row.score > winner.score else "less than" if row.score < winner.score else "as much as"
    return f"The base, which is not in the pool, scores {score(row.score)}: {than} the winner."
