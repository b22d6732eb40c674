"""The words of the status: phase, conditions, and why a search stands still."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from endings import ending
from evomerge_contract.status import EvoMergeStatus
from evomerge_contract.verdict import in_one_sentence
from evomerge_operator.services.decide import Fail, Suspend, Wait
from evomerge_operator.services.known import Known
from evomerge_operator.services.standing import obstacle, only_figures, status_of
from kube_documents import NOW, evomerge, job, known_of, pod, terminated, time

LATER = NOW + timedelta(seconds=11)
UNSCHEDULABLE = [
    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes have a GPU"}
]
NO_IMAGE = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
STARTED = {"running": {"startedAt": "2030-01-01T12:00:05Z"}}


def searching(*pods: dict[str, Any], **status: Any) -> Known:
    """An EvoMerge with a Job for each of the pods."""
    known = known_of(evomerge(status or None), searching=True)
    for index, fields in enumerate(pods):
        made = job(known, index=index, uid=f"job-{index}")
        known.saw_job(made, deleted=False)
        known.saw_pod(pod(made, uid=f"pod-{index}", **fields), deleted=False)
    return known


def test_the_commonest_obstacle_is_told_with_how_many_it_holds_up() -> None:
    known = searching(
        {"conditions": UNSCHEDULABLE}, {"conditions": UNSCHEDULABLE}, {"phase": "Pending", "worker": NO_IMAGE}
    )
    advice = "see spec.worker.resources, spec.worker.podTemplate and the nodes"
    assert obstacle(known, LATER) == ("Unschedulable", f"2 pods cannot start: 0/3 nodes have a GPU; {advice}")


@pytest.mark.parametrize(
    ("fields", "now"),
    [
        ({"conditions": UNSCHEDULABLE}, NOW + timedelta(seconds=9)),  # a scheduler may take so long
        ({"phase": "Running", "worker": STARTED}, LATER),
        ({"phase": "Pending", "worker": {"waiting": {"reason": "ContainerCreating"}}}, LATER),
        ({"phase": "Failed", "worker": terminated(1)}, LATER),
    ],
)
def test_pods_that_start_or_have_started_are_no_obstacle(fields: dict[str, Any], now: datetime) -> None:
    assert obstacle(searching(fields), now) is None


def test_an_event_tells_what_no_status_does() -> None:
    known = known_of(evomerge(), searching=True)
    known.saw_job(job(known), deleted=False)
    known.trouble["job-1"] = ("FailedCreate", "exceeded quota")
    advice = "see spec.worker.podTemplate, and the namespace's quota, limits and Pod Security level"
    assert obstacle(known, LATER) == ("FailedCreate", f"1 pod cannot start: exceeded quota; {advice}")


def test_a_queued_job_is_told_as_queued() -> None:
    known = searching()
    known.saw_job(queued(known, "job-1"), deleted=False)
    assert obstacle(known, LATER) == ("Queued", "1 pod cannot start: the queue has not admitted the Job yet")


def test_it_waits_only_when_no_pod_at_all_gets_on_but_says_why_some_do_not() -> None:
    stuck, works = {"conditions": UNSCHEDULABLE}, {"phase": "Running", "worker": STARTED}
    status = status_of(searching(stuck, works), Wait(), LATER)
    assert (status.phase, status.reason) == ("Searching", "Unschedulable")
    status = status_of(searching(stuck, stuck), Wait(), LATER)
    assert (status.phase, status.reason) == ("Waiting", "Unschedulable")


def test_why_the_last_start_came_to_nothing_is_told_until_a_pod_starts() -> None:
    known = searching()
    known.pending = ("ErrImagePull", "no such image; tried again at 12:01:00 UTC")
    status = status_of(known, Wait(), LATER)
    assert (status.phase, status.reason, status.message) == ("Waiting", *known.pending)
    again = job(known)
    known.saw_job(again, deleted=False)
    known.saw_pod(pod(again, phase="Pending", worker=NO_IMAGE), deleted=False)
    assert status_of(known, Wait(), NOW).reason == "ErrImagePull"
    known.saw_pod(pod(again, phase="Running", worker=STARTED), deleted=False)
    status = status_of(known, Wait(), LATER)
    assert (status.phase, status.reason) == ("Searching", None)


@pytest.mark.parametrize(
    ("decision", "status", "expected"),
    [
        (Wait(), {}, "Searching"),
        (Fail("TooManyFailures", "3 failed"), {}, "Failed"),
        (Suspend(), {}, "Suspended"),
        (Wait(), {"reason": "StorageUnavailable", "message": "no answer"}, "Waiting"),
        (Wait(), {"exported": "s3://out/tiny"}, "Succeeded"),
    ],
)
def test_the_phase_follows_from_the_decision_and_what_was_before(
    decision: Any, status: dict[str, Any], expected: str
) -> None:
    assert status_of(searching(**status), decision, NOW).phase == expected


def test_the_conclusion_stays_in_the_status_and_the_message_says_how_it_ended() -> None:
    conclusion = ending((0.1, 0.2), spread=0.1)
    known = searching(exported="s3://out/tiny")
    known.status = known.status.model_copy(update={"conclusion": conclusion})
    status = status_of(known, Wait(), NOW)
    assert status.message == in_one_sentence(conclusion)
    assert EvoMergeStatus.model_validate(status.wire()).conclusion == conclusion


def test_conditions_keep_the_time_of_their_last_change() -> None:
    known = searching()
    known.status = status_of(known, Wait(), NOW)
    later = status_of(known, Fail("DeadlineExceeded", "72h"), LATER)
    conditions = {c.type: (c.status, c.reason, c.last_transition_time) for c in later.conditions}
    assert conditions == {
        "Accepted": ("True", "Accepted", NOW),
        "Prepared": ("True", "Prepared", NOW),
        "Progressing": ("False", "DeadlineExceeded", LATER),
        "Complete": ("False", "DeadlineExceeded", NOW),
    }


def test_an_edit_in_the_middle_of_a_look_is_for_the_next_one() -> None:
    """Told as observed though nothing was done about it, it would never be acted upon."""
    known = searching()
    known.looked_at = known.generation
    known.saw_evomerge(evomerge(generation=2, version=2))
    for decision in (Wait(), Fail("DeadlineExceeded", "72h")):
        status = status_of(known, decision, NOW)
        assert status.observed_generation == 1
        assert {c.observed_generation for c in status.conditions} == {1}
    known.looked_at = known.generation
    assert status_of(known, Wait(), NOW).observed_generation == 2


def test_the_clock_of_the_deadline_stands_still_while_suspended() -> None:
    known = searching()
    known.status = status_of(known, Wait(), NOW)
    assert known.status.active_since == NOW
    known.status = status_of(known, Suspend(), NOW + timedelta(seconds=30))
    assert (known.status.active_since, known.status.active_seconds) == (None, 30)
    known.status = status_of(known, Wait(), NOW + timedelta(hours=1))
    assert (known.status.active_since, known.status.active_seconds) == (NOW + timedelta(hours=1), 30)
    known.status = status_of(known, Fail("X", "x"), NOW + timedelta(hours=1, seconds=5))
    assert (known.status.active_seconds, known.status.finished_at) == (35, NOW + timedelta(hours=1, seconds=5))


def test_new_figures_alone_need_no_write() -> None:
    before = status_of(searching(), Wait(), NOW)
    assert only_figures(before, before.model_copy(update={"done": 3, "candidates": "3/8", "best": "0.5"}))
    assert not only_figures(before, before.model_copy(update={"done": 3, "phase": "Concluding"}))


def test_the_clock_of_the_deadline_stands_still_while_a_queue_holds_back_all_there_is() -> None:
    known = searching()
    known.status = status_of(known, Wait(), NOW)
    held, let_go = queued(known, "job-1"), queued(known, "job-2", startTime=time(3600))
    known.saw_job(held, deleted=False)
    known.status = status_of(known, Wait(), NOW + timedelta(seconds=30))
    assert (known.status.active_since, known.status.active_seconds) == (None, 30)
    let_go["spec"]["suspend"] = False
    known.saw_job(let_go, deleted=False)
    later = NOW + timedelta(hours=1)
    known.status = status_of(known, Wait(), later)
    assert (known.status.active_since, known.status.active_seconds) == (later, 30)
    assert next(j.began for j in known.jobs.values() if j.uid == "job-2") == later


def queued(known: Known, uid: str, **status: Any) -> dict[str, Any]:
    """A Job that a queue holds back."""
    made = job(known, index=int(uid[-1]), uid=uid, **status)
    made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpus"
    made["spec"]["suspend"] = True
    return made


def test_any_words_at_all_make_a_status_that_can_be_stored() -> None:
    known = known_of(evomerge())
    status = status_of(known, Fail("Failed to pull image!", "x" * 40_000), NOW)
    assert (status.reason, len(status.message or "")) == ("Failed_to_pull_image", 4000)
    assert EvoMergeStatus.model_validate(status.wire()) == status
    assert status_of(known, Fail("0/1", "no"), NOW).reason == "Reason_0_1"
