"""What happens next for an EvoMerge, decided from what is known of it."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from candidate_pages import document_of, settled
from evomerge_contract.report import ConcludeResult, SelectResult, SelectRow
from evomerge_contract.status import CandidateStatus
from evomerge_operator.kube.candidates import finished_status
from evomerge_operator.plan.next import next_keys
from evomerge_operator.plan.proposer import Start
from evomerge_operator.plan.run import BASELINES, Key
from evomerge_operator.services.decide import (
    Delete,
    Fail,
    Idle,
    RunStep,
    StartCandidates,
    Suspend,
    Wait,
    decide,
    log_too_large,
    refusal,
)
from evomerge_operator.services.known import Known
from evomerge_operator.services.live_run import LiveRun
from evomerge_operator.services.tasks import candidate_starts
from kube_documents import NOW, evomerge, job, known_of, manifest_of, time
from one_look import InOneProcess

CONCLUSION = ConcludeResult(winner=0, select=[], test=[], test_items=10, best_source="a", beats_best_source=False)
SELECTED = SelectResult(ranked=[SelectRow(index=0, fitness=0.5, score=0.5)])


def searching(status: dict[str, Any] | None = None, *, pinned: bool = True, **spec: Any) -> Known:
    return known_of(evomerge(status, **spec), searching=True, pinned=pinned)


def live_run(known: Known) -> LiveRun:
    assert known.live is not None
    return known.live


def asked(known: Known, count: int) -> list[Start]:
    """The next starts, taken over as MergeCandidates."""
    live = live_run(known)
    starts = asyncio.run(candidate_starts(live, next_keys(live.run, set(), count), InOneProcess(), "me"))
    for start in starts:
        if start.key not in live.open:
            take(known, start, CandidateStatus())
    return starts


def take(known: Known, start: Start, status: CandidateStatus) -> None:
    """See the MergeCandidate of a start, unfinished, as the API server has it."""
    live_run(known).saw(start.key, document_of(known, live_run(known), start), status, None)


def finish(known: Known, start: Start, score: float | None = 0.5) -> None:
    """Tell the end of a start: its score, or that it failed."""
    live = live_run(known)
    candidate = settled(live, start, score)
    status = finished_status(candidate, CandidateStatus(), "s3://out")
    live.saw(start.key, document_of(known, live, start, status.wire()), status, candidate)


def finish_all(known: Known, score: float | None = 0.5) -> None:
    while starts := asked(known, 4):
        for start in starts:
            finish(known, start, 0.5 if start.key.stage == BASELINES else score)


@pytest.mark.parametrize(
    ("status", "spec", "expected"),
    [
        ({}, {"suspend": True}, Suspend()),
        ({"phase": "Succeeded", "exported": "s3://out/tiny"}, {"suspend": True}, Idle()),
        ({"phase": "Failed", "observedGeneration": 1}, {}, Idle()),
        ({"phase": "Failed", "observedGeneration": 0}, {}, RunStep("prepare")),  # edited since
        ({"phase": "Succeeded", "finishedAt": time(-60)}, {"ttlSecondsAfterFinished": 60}, Delete()),
        ({"phase": "Succeeded", "finishedAt": time(-59)}, {"ttlSecondsAfterFinished": 60}, Idle()),
        ({"phase": "Succeeded", "finishedAt": time(-59)}, {}, Idle()),
        ({}, {}, RunStep("prepare")),
    ],
)
def test_before_and_after_the_search(status: dict[str, Any], spec: dict[str, Any], expected: object) -> None:
    assert decide(known_of(evomerge(status, **spec)), NOW) == expected


def test_what_is_being_deleted_is_left_alone() -> None:
    made = evomerge()
    made["metadata"]["deletionTimestamp"] = time(0)
    assert decide(known_of(made), NOW) == Idle()


@pytest.mark.parametrize(
    ("status", "spec", "reason"),
    [
        ({"activeSeconds": 50, "activeSince": time(-10)}, {"budget": {"deadline": "1m"}}, "DeadlineExceeded"),
        ({"activeSeconds": 60}, {"budget": {"deadline": "1m"}}, "DeadlineExceeded"),
        ({"activeSeconds": 49, "activeSince": time(-10)}, {"budget": {"deadline": "1m"}}, None),
        ({"steps": {"prepare": {"disruptions": 4}}}, {"budget": {"disruptions": 3}}, "TooManyDisruptions"),
        ({"steps": {"prepare": {"disruptions": 3}}}, {"budget": {"disruptions": 3}}, None),
        ({"steps": {"export": {"failures": 2}}}, {}, "ExportFailed"),
        ({"steps": {"select": {"failures": 2}}}, {}, "SelectFailed"),
        ({"steps": {"conclude": {"failures": 1, "disruptions": 1, "waits": 9}}}, {}, None),
    ],
)
def test_budgets_end_it_only_when_they_are_used_up(
    status: dict[str, Any], spec: dict[str, Any], reason: str | None
) -> None:
    decision = decide(searching(status, **spec), NOW)
    assert (decision.reason if isinstance(decision, Fail) else None) == reason


def test_storage_that_is_away_makes_it_prepare_again_no_sooner_than_it_may_be_tried() -> None:
    known = searching({"reason": "StorageUnavailable"})
    known.probe_at = NOW + timedelta(seconds=30)
    assert decide(known, NOW) == Wait()
    assert decide(known, NOW + timedelta(seconds=30)) == RunStep("prepare")
    known.saw_job(job(known, "prepare", None, 2), deleted=False)
    assert decide(known, NOW + timedelta(seconds=30)) == Wait()


def test_free_slots_are_filled_baselines_first() -> None:
    known = searching(parallelism=4)
    decision = decide(known, NOW)
    assert isinstance(decision, StartCandidates)
    assert [batch[0] for batch in decision.batches] == [
        *(Key(BASELINES, index) for index in range(3)),
        Key("ps", 0),
    ]
    assert all(len(batch) == 1 for batch in decision.batches)


def test_running_candidates_are_not_started_again_and_take_their_slots() -> None:
    known = searching(parallelism=2)
    asked(known, 1)
    known.saw_job(job(known, BASELINES, 0), deleted=False)
    decision = decide(known, NOW)
    assert isinstance(decision, StartCandidates)
    assert [batch[0] for batch in decision.batches] == [Key(BASELINES, 1)]
    known.saw_job(job(known, BASELINES, 1, uid="job-2"), deleted=False)
    assert decide(known, NOW) == Wait()


def test_lowered_parallelism_drains() -> None:
    known = searching(parallelism=1)
    for index in range(2):
        known.saw_job(job(known, BASELINES, index, uid=f"job-{index}"), deleted=False)
    assert decide(known, NOW) == Wait()


def test_nothing_starts_while_starts_back_off() -> None:
    known = searching()
    known.starts_at = NOW + timedelta(seconds=1)
    assert decide(known, NOW) == Wait()
    assert isinstance(decide(known, NOW + timedelta(seconds=1)), StartCandidates)


def test_candidates_of_one_stage_share_pods_and_one_that_failed_goes_alone() -> None:
    known = searching(parallelism=3, worker={"candidatesPerPod": 4})
    (first,) = asked(known, 1)
    take(known, first, CandidateStatus(attempts=1, failures=1))
    decision = decide(known, NOW)
    assert isinstance(decision, StartCandidates)
    assert [[(key.stage, key.index) for key in batch] for batch in decision.batches] == [
        [(BASELINES, 0)],
        [(BASELINES, 1), (BASELINES, 2)],
        [("ps", 0), ("ps", 1), ("ps", 2), ("ps", 3)],
    ]


def test_all_sources_failing_ends_it_before_the_search_has_cost_anything() -> None:
    known = searching()
    for start in asked(known, 2):
        finish(known, start, None)
    decision = decide(known, NOW)
    assert isinstance(decision, Fail)
    assert decision.reason == "NoSourceScored"


def test_more_failures_than_the_budget_end_it() -> None:
    known = searching(budget={"failures": 1})
    for start in asked(known, 6):
        finish(known, start, 0.5 if start.key.stage == BASELINES or start.key.index == 0 else None)
    decision = decide(known, NOW)
    assert isinstance(decision, Fail)
    assert decision.reason == "TooManyFailures"


def test_a_search_without_any_score_has_nothing_to_conclude() -> None:
    known = searching(budget={"failures": 100})
    finish_all(known, None)
    decision = decide(known, NOW)
    assert isinstance(decision, Fail)
    assert decision.reason == "NoCandidateScored"


def test_a_complete_search_is_selected_from_concluded_and_then_exported_one_job_at_a_time() -> None:
    known = searching(budget={"deadline": "1h"})
    finish_all(known)
    for step, result in (("select", {"selected": SELECTED}), ("conclude", {"conclusion": CONCLUSION})):
        assert decide(known, NOW) == RunStep(step)
        known.saw_job(job(known, step, None, uid=step), deleted=False)
        assert decide(known, NOW) == Wait()
        known.drop_job(f"tiny-11112222-{step}-a1")
        known.status = known.status.model_copy(update=result)
    assert decide(known, NOW) == RunStep("export")
    known.status = known.status.model_copy(update={"exported": "s3://out/tiny", "active_seconds": 1e9})
    assert decide(known, NOW) == Wait(), "neither a second export nor an end by a deadline"


def test_a_search_from_before_baselines_were_pinned_is_concluded_without_being_selected_from() -> None:
    known = searching(pinned=False)
    finish_all(known)
    assert decide(known, NOW) == RunStep("conclude")
    known.status = known.status.model_copy(update={"conclusion": CONCLUSION})
    assert decide(known, NOW) == RunStep("export")


@pytest.mark.parametrize(
    ("genes", "candidates", "fits"),
    [(4288, 12_800, True), (4288, 31_000, False), (1000, 40_000, True), (1000, 50_000, False), (32, 390_000, True)],
)
def test_a_log_of_more_than_512_mib_is_refused(genes: int, candidates: int, fits: bool) -> None:
    """The paper's data-flow search, 12,800 candidates of 4,288 genes, fits."""
    run = live_run(searching()).run
    run.stage.genes *= genes // len(run.stage.genes)
    spec = run.stage.stage
    run.stage.stage = spec.model_copy(update={"search": spec.search.model_copy(update={"candidates": candidates})})
    assert (log_too_large(run) is None) == fits


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        ({}, []),
        ({"export": None}, ["spec.export.uri"]),
        (
            {"models": [{"name": n, "uri": f"file:///models/{n}"} for n in "ab"]},
            ["spec.models[0].uri", "spec.models[1].uri"],
        ),
        ({"models": [{"name": n, "uri": f"hf://models/{n}"} for n in "ab"]}, []),
        (
            {"models": [{"name": n, "uri": f"s3://models/{n}", "adapter": "file:///lora"} for n in "ab"]},
            ["spec.models[0].adapter", "spec.models[1].adapter"],
        ),
    ],
)
def test_what_only_one_machine_can_run_is_refused_by_its_fields(spec: dict[str, Any], fields: list[str]) -> None:
    assert [problem.path for problem in refusal(manifest_of(evomerge(**spec)))] == fields
