"""Problems of one cause are told in one sentence, with their places."""

from evomerge_contract.causes import by_cause
from evomerge_contract.report import Problem

KEYS = "cannot be read without S3 credentials: set AWS_ACCESS_KEY_ID"


def test_one_cause_at_many_places_is_told_once() -> None:
    problems = [Problem(path=f"models.{i}", message=f"s3://bucket/{i} {KEYS}") for i in range(5)]
    problems.insert(2, Problem(path="base", message="s3://other/base cannot be read: there is no bucket other"))
    assert by_cause([*problems, problems[0]]) == [
        f"models.0, models.1 and 3 more: s3://bucket/0 (and 4 more) {KEYS}",
        "base: s3://other/base cannot be read: there is no bucket other",
    ]


def test_causes_without_a_place_of_storage_are_told_as_they_are() -> None:
    problems = [Problem(path=path, message="the disk is full") for path in ("out", "cache")]
    assert by_cause(problems[:1]) == ["out: the disk is full"]
    assert by_cause(problems) == ["out, cache: the disk is full"]
    assert by_cause([Problem(path="a", message="s3://b/c: x.safetensors is missing")]) == [
        "a: s3://b/c: x.safetensors is missing"
    ]
