"""What is known of an EvoMerge: news that come late, twice or never, from two watches and a list."""

import pytest

from evomerge_operator.plan.run import Key
from evomerge_operator.services.known import Known
from kube_documents import NOW, evomerge, job, known_of, pod, terminated

RUNNING = {"running": {"startedAt": "2030-01-01T12:00:05Z"}}
NAME = "tiny-11112222-ps-00000-a1"


@pytest.fixture
def known() -> Known:
    known = known_of(evomerge(), searching=True)
    known.saw_job(job(known), deleted=False)
    return known


def test_an_older_state_of_the_resource_that_comes_late_is_none(known: Known) -> None:
    known.saw_evomerge(evomerge({"phase": "Searching"}, version=3))
    known.saw_evomerge(evomerge({"phase": "Preparing"}, version=2))
    assert known.status.phase == "Searching"
    known.saw_evomerge(evomerge({"phase": "Concluding"}, version=10))
    assert known.status.phase == "Concluding"


def test_a_manifest_stays_until_a_new_generation_has_been_read(known: Known) -> None:
    """An edit in the middle of a look is for the next one; until then there is a manifest."""
    before = known.manifest
    known.saw_evomerge(evomerge(version=3, generation=2))
    assert known.manifest is before
    assert known.read_generation != known.generation


def test_the_last_state_of_a_pod_that_vanished_is_kept_for_its_results(known: Known) -> None:
    of_job = job(known)
    known.saw_pod(pod(of_job, phase="Succeeded", worker=terminated(0, "Completed", "note")), deleted=False)
    known.saw_pod(pod(of_job, phase="Running", worker=RUNNING, deleted=True), deleted=True)
    kept = known.pods[NAME]
    assert kept.exit is not None
    assert kept.exit.message == "note"
    assert NAME not in known.gone


def test_a_pod_that_vanished_before_its_end_takes_its_job_with_it(known: Known) -> None:
    known.saw_pod(pod(job(known), phase="Running", worker=RUNNING), deleted=True)
    assert known.gone == {NAME}


def test_a_pod_of_an_earlier_job_of_the_name_is_not_taken_for_this_ones(known: Known) -> None:
    known.saw_pod(pod(job(known, uid="job-0"), phase="Failed", worker=terminated(1)), deleted=False)
    assert known.pods == {}


def test_a_job_that_somebody_deleted_is_gone_and_one_that_we_deleted_is_forgotten(known: Known) -> None:
    known.saw_job(job(known, index=1, uid="job-2"), deleted=False)
    known.saw_job(job(known, index=1, uid="job-2"), deleted=True)
    assert known.gone == {"tiny-11112222-ps-00001-a1"}
    known.drop_job(NAME)
    known.saw_job(job(known), deleted=False)  # late news of it
    assert NAME not in known.jobs
    known.saw_job(job(known), deleted=True)
    assert NAME not in known.gone


def test_a_list_tells_of_jobs_and_pods_that_vanished_unseen(known: Known) -> None:
    other, third = job(known, index=1, uid="job-2"), job(known, index=2, uid="job-3")
    for made in (other, third):
        known.saw_job(made, deleted=False)
    known.saw_pod(pod(other, uid="pod-2", phase="Running", worker=RUNNING), deleted=False)
    known.saw_pod(pod(third, uid="pod-3", phase="Succeeded", worker=terminated(0, "Completed")), deleted=False)
    known.observed([other, third], [], {"pod-2", "pod-3"}, NOW)
    # The first lost its Job, the second its pod; the third's pod had ended, and its end is known.
    assert known.gone == {NAME, "tiny-11112222-ps-00001-a1"}


def test_a_list_brings_jobs_and_pods_that_the_watches_have_not_told_of(known: Known) -> None:
    other = job(known, index=1, uid="job-2")
    told = pod(other, uid="pod-9", phase="Running", worker=RUNNING)
    known.observed([job(known), other], [told], set(), NOW)
    assert known.jobs.keys() == {NAME, "tiny-11112222-ps-00001-a1"}
    assert known.pods["tiny-11112222-ps-00001-a1"].started is not None
    assert known.gone == set()


def test_a_pod_that_came_while_the_list_was_asked_for_is_not_taken_for_lost(known: Known) -> None:
    known.saw_pod(pod(job(known), uid="pod-new", phase="Running", worker=RUNNING), deleted=False)
    known.observed([job(known)], [], set(), NOW)
    assert known.gone == set()


def test_disruptions_of_candidates_and_steps_count_together(known: Known) -> None:
    known.saw_evomerge(evomerge({"steps": {"prepare": {"disruptions": 2, "waits": 1}}}, version=2))
    assert known.live is not None
    known.live.disruptions.update({Key("ps", index): 1 for index in range(3)})
    assert known.disruptions == 5
    assert known.ended_attempts("prepare") == 3
    assert known.ended_attempts("export") == 0


def test_a_job_that_only_bears_the_labels_is_not_taken_for_one_of_ours(known: Known) -> None:
    foreign = job(known, index=7, uid="job-7")
    foreign["metadata"]["ownerReferences"] = [{"kind": "EvoMerge", "name": "other", "uid": "other"}]
    bare = {"metadata": {"name": "bare", "uid": "job-8", "labels": dict(foreign["metadata"]["labels"])}}
    before = set(known.jobs)
    known.observed([foreign, bare], [], set(), NOW)
    known.saw_job(foreign, deleted=False)
    assert set(known.jobs) == before


def test_a_status_of_a_newer_version_can_be_read(known: Known) -> None:
    status = {"phase": "Searching", "mood": "good", "steps": {"prepare": {"succeeded": 1, "moods": 2}}}
    newer = Known.of(evomerge(status=status))
    assert (newer.status.phase, newer.counters("prepare").succeeded) == ("Searching", 1)
