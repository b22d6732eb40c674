"""Which candidates to start now."""

from collections import Counter
from collections.abc import Set

from evomerge_operator.plan.run import BASELINES, Key, Run


def next_keys(run: Run, running: Set[Key], slots: int) -> list[Key]:
    """At most `slots` candidates to start now; none when the search waits, is done or has failed too often.

    An index that was not asked for yet comes after all that were.
    """
    if slots <= 0 or too_many_failures(run):
        return []
    compared, stage = run.compared, run.stage
    named = (Key(BASELINES, index) for index in range(compared.leading, len(run.baselines)))
    keys = [key for key in named if key.index not in compared.finished and key not in running]
    progress = stage.progress
    for index in range(progress.leading, stage.candidates):
        if len(keys) >= slots:
            break
        if index >= progress.asked and progress.leading < index - stage.stage.search.lag + 1:
            break
        key = Key(stage.name, index)
        if index not in progress.finished and key not in running:
            keys.append(key)
    return keys[:slots]


def too_many_failures(run: Run) -> bool:
    """Whether more candidates failed than the budget allows.

    Only those are counted before which all are finished: the same number at any speed.
    """
    return sum(stage.progress.leading_failures for stage in run.stages) > run.manifest.spec.budget.failures


def failures_in_words(run: Run) -> str:
    """Why a search with too many failures ended."""
    failed = [candidate for stage in run.stages for candidate in stage.progress.failed]
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(c.reason for c in failed).most_common())
    latest = failed[-1]
    return (
        f"{len(failed)} candidate{'s' if len(failed) != 1 else ''} failed ({reasons}), more than spec.budget.failures "
        f"({run.manifest.spec.budget.failures}) allows; candidate {latest.index} said: {latest.message}"
    )


def all_sources_failed(run: Run) -> str | None:
    """Why there is nothing to compare with, once every source alone has failed."""
    indices = [index for index, baseline in enumerate(run.baselines) if baseline.role == "source"]
    sources = [run.compared.finished[index] for index in indices if index in run.compared.finished]
    if len(sources) < len(indices) or any(c.outcome == "Succeeded" for c in sources):
        return None
    return "no source alone could be evaluated: " + "; ".join(f"{c.name}: {c.reason} ({c.message})" for c in sources)
