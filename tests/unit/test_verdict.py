"""How a run ended, told alike by the terminal and the status (and by the report page and the model card)."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from begun import begun
from documents import document
from endings import ending
from evomerge_contract.manifest import EvoMerge
from evomerge_contract.report import ConcludeResult
from evomerge_contract.verdict import in_one_sentence, verdict_of
from evomerge_operator.local.directory import RunDirectory
from evomerge_operator.local.terminal import Terminal
from evomerge_operator.services.decide import Wait
from evomerge_operator.services.standing import status_of
from evomerge_operator.spaces.baselines import DEFAULT_DARE_TIES, TASK_ARITHMETIC
from kube_documents import NOW, evomerge, known_of

WON = ending((0.1, 0.2), average=(0.05, 0.1))
LUCKY = ending((0.1, 0.2), spread=0.2)


@pytest.mark.parametrize(
    ("end", "finding", "headline"),
    [
        (WON, "beats", "The winner beats the best source (reader) and the plain average."),
        (ending((0.1, 0.2)), "beats", "The winner beats the best source (reader)."),
        (
            ending((0.1, 0.2), average=(-0.01, 0.1)),
            "beats",
            "The winner beats the best source (reader), but is not shown to beat the plain average, which needs no "
            "search.",
        ),
        (
            ending((-0.01, 0.05), average=(0.05, 0.1)),
            "ahead",
            "The winner is ahead of the best source (reader), but not beyond chance.",
        ),
        (ending((-0.1, -0.05)), "behind", "Nothing beat the best source (reader)."),
        (ending((0.0, 0.0)), "behind", "Nothing beat the best source (reader)."),
        (
            LUCKY,
            "beats",
            "The winner beats the best source (reader), but by less than its scores spread over mask seeds.",
        ),
        (ending((0.1, 0.2), spread=0.1), "beats", "The winner beats the best source (reader)."),
        (ending((-0.1, -0.05), spread=0.2), "behind", "Nothing beat the best source (reader)."),
    ],
)
def test_the_headline_claims_what_the_intervals_allow_and_no_more(
    end: ConcludeResult, finding: str, headline: str
) -> None:
    verdict = verdict_of(end)
    assert (verdict.finding, verdict.headline) == (finding, headline)


def test_a_headline_names_the_baselines_as_one_speaks_of_them() -> None:
    end = ending((0.1, 0.2), average=(0.05, 0.1))
    average = next(row for row in end.test if row.role == "average")
    others = [average.model_copy(update={"name": n, "role": "default"}) for n in (TASK_ARITHMETIC, DEFAULT_DARE_TIES)]
    assert verdict_of(end.model_copy(update={"test": [*end.test, *others]})).headline == (
        "The winner beats the best source (reader), the plain average, task arithmetic and the default DARE-TIES."
    )


def test_the_figures_name_both_scores_and_their_difference_with_intervals() -> None:
    assert verdict_of(WON).figures == (
        "Candidate 3 scores 0.500 [0.460, 0.540] on 500 test items, reader 0.350, a difference of +0.150 "
        "[+0.100, +0.200]."
    )


def test_the_winner_of_a_random_method_is_told_with_its_five_masks() -> None:
    assert verdict_of(WON).masks == ()
    assert verdict_of(LUCKY).masks == (
        "With 5 mask seeds (7, 8, 9, 10 and 11) the winner scores 0.500, 0.700, 0.500, 0.500 and 0.500 on select "
        "items: mean 0.540, spread 0.200. The exported weights have mask seed 7.",
        "That spread is larger than the lead over the best source, +0.150: the lead may be luck of the draw, and the "
        "recipe with another seed may have none.",
    )
    assert len(verdict_of(ending((0.1, 0.2), spread=0.1)).masks) == 1


@pytest.mark.parametrize(
    ("end", "masks"),
    [
        (WON, ""),
        (LUCKY, "; its scores on select items spread by 0.200 over mask seeds, more than its lead"),
        (ending((0.1, 0.2), spread=0.1), "; its scores on select items spread by 0.100 over mask seeds"),
    ],
)
def test_a_condition_has_headline_and_figures_in_one_sentence(end: ConcludeResult, masks: str) -> None:
    verdict, message = verdict_of(end), in_one_sentence(end)
    assert message == f"the{verdict.headline[3:-1]}: candidate{verdict.figures[9:-1]}{masks}"


@pytest.mark.parametrize("end", [WON, LUCKY, ending((-0.01, 0.05)), ending((-0.1, -0.05))])
def test_terminal_and_status_say_it_in_the_same_words(end: ConcludeResult, tmp_path: Path) -> None:
    verdict = verdict_of(end)
    assert shown(end, tmp_path).splitlines()[-5 - len(verdict.masks) : -3] == [
        verdict.headline,
        verdict.figures,
        *verdict.masks,
    ]
    known = known_of(evomerge({"exported": "s3://out/tiny"}), searching=True)
    known.status = known.status.model_copy(update={"conclusion": end})
    assert status_of(known, Wait(), NOW).message == in_one_sentence(end)


def test_the_terminals_table_says_what_each_row_is(tmp_path: Path) -> None:
    text = shown(WON, tmp_path)
    for name in ("winner (candidate 3)", "source reader", "plain average", "base (not in the pool)"):
        assert name in text


def shown(end: ConcludeResult, folder: Path) -> str:
    """What a terminal prints in the end."""
    out = io.StringIO()
    run, _ = begun(EvoMerge.model_validate(document()))
    Terminal(Console(file=out, width=300)).done(run, end, RunDirectory(folder))
    return out.getvalue()
