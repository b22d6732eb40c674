"""Did it work? The answer in plain sentences, the same in the report and in the model card."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from evomerge_contract.manifest import EvoMergeSpec
from evomerge_contract.report import ConcludeResult, RunReport, ScoreRow
from evomerge_worker.report.masks import mask_sentences
from evomerge_worker.report.text import count, interval, listing, score, signed


@dataclass(frozen=True)
class Verdict:
    """`headline` answers in one sentence, `details` give the figures; `tone` is how it is shown."""

    tone: Literal["good", "mixed", "bad", "open"]
    headline: str
    details: list[str]


def verdict(run: RunReport, spec: EvoMergeSpec) -> Verdict:
    """How a run ended, or how far it is."""
    return unfinished(run, spec) if run.conclusion is None else concluded(run.conclusion)


def concluded(conclusion: ConcludeResult) -> Verdict:
    """How a run ended."""
    rows = conclusion.test
    winner = next(r for r in rows if r.role == "winner")
    source = next(r for r in rows if r.role == "source" and r.name == conclusion.best_source)
    rivals = [r for r in rows if r.role in ("average", "default")]
    ahead = [r for r in rivals if not _beaten(r)]
    details = [
        f"On {count(conclusion.test_items, 'test item')} the winner scores {score(winner.score)} "
        f"{interval(winner.interval)}; the best source, {source.name}, scores {score(source.score)}"
        f"{_difference(source)}."
    ]
    details += [_sentence(r) for r in rivals if r.role == "average"]
    details += [_outside(r, winner) for r in rows if r.role == "base"]
    details += mask_sentences(conclusion)
    if not conclusion.beats_best_source:
        higher = winner.score > source.score
        headline = "Nothing beat the best source" + (
            " for certain: the winner scores higher, but the difference may be chance." if higher else "."
        )
        return Verdict("bad", headline, details)
    if ahead:
        free = listing([f"the {r.name}" for r in ahead])
        need = "needs" if len(ahead) == 1 else "need"
        headline = f"The winner beats the best source, but is not shown to beat {free}, which {need} no search."
        return Verdict("mixed", headline, details)
    if conclusion.within_luck:
        headline = "The winner beats the best source, but by less than a draw of other masks may cost it."
        return Verdict("mixed", headline, details)
    beaten = listing(["the best source", *(f"the {r.name}" for r in rivals)])
    return Verdict("good", f"It worked: the winner beats {beaten}.", details)


def unfinished(run: RunReport, spec: EvoMergeSpec) -> Verdict:
    """How far a run is that has not been concluded; search scores flatter, and the text says so."""
    budget = spec.stages[0].search.candidates
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
        return Verdict("bad", headline, details)
    if done and not scored:
        return Verdict("bad", f"Nothing has come out: all {count(done)} finished candidates failed.", details)
    if done >= budget:
        return Verdict("open", "Not finished: the search is done, but the test items have not been scored.", details)
    return Verdict("open", f"Not finished: {count(done)} of {count(budget)} candidates are done.", details)


def _beaten(row: ScoreRow) -> bool:
    return row.winner_minus_interval is not None and row.winner_minus_interval.low > 0


def _difference(row: ScoreRow) -> str:
    if row.winner_minus is None or row.winner_minus_interval is None:
        return ""
    return f", a difference of {signed(row.winner_minus)} {interval(row.winner_minus_interval, sign=True)}"


def _sentence(row: ScoreRow) -> str:
    return f"The {row.name} scores {score(row.score)}{_difference(row)}."


def _outside(row: ScoreRow, winner: ScoreRow) -> str:
    than = "more than" if row.score > winner.score else "less than" if row.score < winner.score else "as much as"
    return f"The base, which is not in the pool, scores {score(row.score)}: {than} the winner."
