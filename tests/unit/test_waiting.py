"""How long no pods are started after some did not start in time."""

from datetime import timedelta

from evomerge_operator.services.reconcile import wait_longer
from kube_documents import NOW, evomerge, known_of


def test_every_start_that_fails_doubles_the_wait_up_to_ten_minutes() -> None:
    known, now, waits = known_of(evomerge(), searching=True), NOW, []
    for _ in range(7):
        known.starts_at = wait_longer(known, now)
        waits.append((known.starts_at - now).total_seconds())
        now = known.starts_at
    assert waits == [30, 60, 120, 240, 480, 600, 600]


def test_pods_of_one_start_that_are_late_one_after_the_other_count_once() -> None:
    known = known_of(evomerge(), searching=True)
    known.starts_at = wait_longer(known, NOW)
    assert wait_longer(known, NOW + timedelta(seconds=1)) == NOW + timedelta(seconds=30)


def test_a_wait_for_another_reason_is_no_start_that_failed() -> None:
    known = known_of(evomerge(), searching=True)
    known.starts_at = NOW + timedelta(seconds=5)  # after pods were lost
    assert wait_longer(known, NOW) == NOW + timedelta(seconds=30)
