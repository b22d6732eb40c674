"""How an attempt has ended, from what Kubernetes reports of its Job and pod."""

from datetime import timedelta
from typing import Any

import pytest

from evomerge_contract.note import write_note
from evomerge_contract.report import EvaluateResult, Report
from evomerge_contract.task import EvaluateTask
from evomerge_operator.kube.pods import view_job, view_pod
from evomerge_operator.plan.run import BASELINES, Key
from evomerge_operator.planning import calls
from evomerge_operator.services.ending import (
    Disrupted,
    Ending,
    Failed,
    Reported,
    Waits,
    Wrong,
    ending_of,
    has_ended,
)
from kube_documents import NOW, evomerge, job, known_of, manifest_of, pod, terminated, time

KNOWN = known_of(evomerge(), searching=True)
SPEC = manifest_of(evomerge()).spec
JOB = job(KNOWN)
DISRUPTED = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "evicted"}]


def task() -> EvaluateTask:
    assert KNOWN.live is not None
    _, [start] = calls.starts(KNOWN.live.proposer, [], [Key(BASELINES, 0)], {})
    return start.task


def report(**fields: Any) -> Report:
    return Report(task=task().digest, kind="evaluate", **fields)


SCORED = report(outcome="Succeeded", evaluate=EvaluateResult(scores={"sums": 0.5}), seconds={"total": 2.0})
CRASHED = report(outcome="Failed", reason="Crashed", message="the session ended")
WRONG = report(outcome="Failed", reason="InvalidInput", message="models/a: no config.json")
AWAY = report(outcome="Failed", reason="TryAgain", message="s3://models: no answer")


def note(of: Report) -> str:
    return write_note([task()], [of])


def ending(of_pod: dict[str, Any]) -> Ending:
    return ending_of(view_pod(of_pod), [task()], SPEC)


def test_a_note_at_exit_code_0_is_believed_and_gets_the_node() -> None:
    found = ending(pod(JOB, phase="Succeeded", worker=terminated(0, "Completed", note(SCORED))))
    assert isinstance(found, Reported)
    assert [(r.evaluate and r.evaluate.scores, r.host, r.seconds) for r in found.reports] == [
        ({"sums": 0.5}, "node1", {"total": 2.0})
    ]


def test_a_killed_child_makes_the_container_say_oomkilled_though_its_note_scores() -> None:
    found = ending(pod(JOB, phase="Succeeded", worker=terminated(0, "OOMKilled", note(SCORED))))
    assert isinstance(found, Reported)
    assert found.reports[0].outcome == "Succeeded"


def test_a_crash_in_a_container_that_says_oomkilled_was_for_memory() -> None:
    found = ending(pod(JOB, phase="Succeeded", worker=terminated(0, "OOMKilled", note(CRASHED))))
    assert isinstance(found, Reported)
    assert found.reports[0].reason == "OutOfMemory"
    found = ending(pod(JOB, phase="Succeeded", worker=terminated(0, "Completed", note(CRASHED))))
    assert isinstance(found, Reported)
    assert found.reports[0].reason == "Crashed"


def test_a_note_that_was_written_before_an_eviction_is_believed() -> None:
    found = ending(
        pod(JOB, phase="Failed", conditions=DISRUPTED, worker=terminated(0, "Completed", note(SCORED)), deleted=True)
    )
    assert isinstance(found, Reported)


@pytest.mark.parametrize(
    ("of_pod", "expected"),
    [
        (pod(JOB, phase="Failed", worker=terminated(137, "OOMKilled")), "OutOfMemory"),
        (pod(JOB, phase="Failed", worker=terminated(1, message="Traceback")), "Crashed"),
        (pod(JOB, phase="Failed", worker=terminated(1, message=note(SCORED))), "Crashed"),
        (pod(JOB, phase="Failed", worker=terminated(2)), "Crashed"),
        (pod(JOB, phase="Failed", reason="DeadlineExceeded", worker=terminated(143)), "TimedOut"),
        (pod(JOB, phase="Failed", reason="DeadlineExceeded", worker=terminated(75, message=note(AWAY))), "TimedOut"),
        (pod(JOB, phase="Failed", reason="Evicted", message="Usage of EmptyDir volume exceeds the limit"), "Evicted"),
        (pod(JOB, phase="Running", worker=terminated(1)), "Crashed"),  # and another container goes on
        (pod(JOB, phase="Failed", reason="DeadlineExceeded", deleted=True), "TimedOut"),
        (pod(JOB, phase="Succeeded", worker=terminated(0, "Completed")), "Garbage"),
        (pod(JOB, phase="Succeeded", worker=terminated(0, "Completed", note(SCORED)[:-1])), "Garbage"),
        (pod(JOB, phase="Succeeded", worker=terminated(0, "Completed", "warning\n" + note(SCORED))), "Garbage"),
        (pod(JOB, phase="Succeeded", worker=terminated(0, "Completed", note(SCORED).replace("0.5", "0.9"))), "Garbage"),
    ],
)
def test_what_ended_by_itself_without_a_note_has_failed(of_pod: dict[str, Any], expected: str) -> None:
    found = ending(of_pod)
    assert isinstance(found, Failed)
    assert found.reason == expected


@pytest.mark.parametrize(
    "of_pod",
    [
        pod(JOB, phase="Failed", conditions=DISRUPTED, worker=terminated(143)),
        pod(JOB, phase="Failed", conditions=DISRUPTED, worker=terminated(75, message=note(AWAY))),
        pod(JOB, phase="Failed", worker=terminated(143), deleted=True),
        pod(JOB, phase="Failed", reason="Evicted", message="the node was low on memory", conditions=DISRUPTED),
        pod(JOB, phase="Failed"),
        pod(JOB, phase="Failed", reason="UnexpectedAdmissionError", message="no healthy devices present"),
        pod(JOB, phase="Failed", worker=terminated(137, "ContainerStatusUnknown")),
        pod(JOB, phase="Failed", worker=terminated(128, "StartError", "device hook failed")),
        pod(JOB, phase="Failed", reason="NodeLost"),
        pod(JOB, phase="Running", worker={"running": {}}),  # and it will never say more
    ],
)
def test_a_lost_pod_is_a_disruption_and_no_failure(of_pod: dict[str, Any]) -> None:
    assert isinstance(ending(of_pod), Disrupted)


def test_a_pod_that_was_never_seen_is_a_disruption() -> None:
    assert isinstance(ending_of(None, [task()], SPEC), Disrupted)


def test_exit_75_waits_and_exit_65_is_wrong_in_the_words_of_the_note_or_of_the_container() -> None:
    assert ending(pod(JOB, phase="Failed", worker=terminated(75, message=note(AWAY)))) == Waits(
        "s3://models: no answer"
    )
    assert ending(pod(JOB, phase="Failed", worker=terminated(65, message=note(WRONG)))) == Wrong(
        "models/a: no config.json"
    )
    assert ending(pod(JOB, phase="Failed", worker=terminated(75, message="no disk"))) == Waits("no disk")


def test_a_job_has_ended_with_its_pod_or_when_it_is_gone() -> None:
    view = view_job(JOB)
    running = view_pod(pod(JOB, phase="Running", worker={"running": {}}))
    assert not has_ended(view, None, NOW, gone=False)
    assert not has_ended(view, running, NOW + timedelta(days=1), gone=False)
    assert has_ended(view, running, NOW, gone=True)
    assert has_ended(view, view_pod(pod(JOB, phase="Succeeded")), NOW, gone=False)


def test_a_finished_job_without_a_pod_has_ended_once_the_pods_watch_had_its_time() -> None:
    failed = view_job(job(KNOWN, conditions=[{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]))
    assert not has_ended(failed, None, NOW + timedelta(seconds=9), gone=False)
    assert has_ended(failed, None, NOW + timedelta(seconds=11), gone=False)
    complete = view_job(job(KNOWN, conditions=[{"type": "Complete", "status": "False"}]))
    assert not has_ended(complete, None, NOW + timedelta(days=1), gone=False)


def test_a_pod_that_should_have_been_gone_a_minute_ago_is_on_a_dead_node() -> None:
    stays = view_pod(pod(JOB, phase="Running", worker={"running": {"startedAt": time(1)}}, deleted=True))
    assert not has_ended(view_job(JOB), stays, NOW + timedelta(seconds=9 + 60), gone=False)
    assert has_ended(view_job(JOB), stays, NOW + timedelta(seconds=9 + 61), gone=False)
    assert ending_of(stays, [task()], SPEC) == Disrupted("the pod was deleted")
