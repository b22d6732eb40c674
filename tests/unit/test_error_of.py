"""What a failed report means for a person at the terminal: the field of the manifest, the words, and what to do."""

from documents import document
from evomerge_contract.candidate import FailureReason
from evomerge_contract.manifest import EvoMerge
from evomerge_contract.report import Problem, Report
from evomerge_operator.errors import InputError, RunError, TryAgainError
from evomerge_operator.local.carry_out import error_of

MANIFEST = EvoMerge.model_validate(document())


def failed(reason: FailureReason, *problems: Problem) -> Report:
    digest = "sha256:" + "0" * 64
    return Report(
        task=digest, kind="prepare", outcome="Failed", reason=reason, message="models.b: gone", problems=list(problems)
    )


def test_what_storage_withholds_is_told_with_the_manifests_field() -> None:
    gone = Problem(path="models.b", message="s3://models/b is empty or does not exist")
    refused = Problem(path="objectives.sums.test", message="the server refuses the S3 credentials")
    error = error_of(failed("TryAgain", gone, refused), "preparing the sources", MANIFEST)
    assert isinstance(error, TryAgainError)
    assert str(error) == (
        "preparing the sources: spec.models[1].uri: s3://models/b is empty or does not exist; "
        "spec.evaluation.objectives[0].jsonl.test: the server refuses the S3 credentials; "
        "mend that, and the same command goes on later"
    )


def test_trouble_without_a_place_is_told_in_its_own_words() -> None:
    error = error_of(failed("TryAgain"), "ps 3", MANIFEST)
    assert str(error) == "ps 3: models.b: gone; mend that, and the same command goes on later"


def test_mistakes_and_failures_are_told_apart() -> None:
    problem = Problem(path="base", message="is wrong")
    mistake = error_of(failed("InvalidInput", problem), "ps 3", MANIFEST)
    assert isinstance(mistake, InputError)
    assert mistake.problems == [Problem(path="spec.base", message="is wrong")]
    failure = error_of(failed("Crashed"), "ps 3", MANIFEST)
    assert isinstance(failure, RunError)
    assert str(failure) == "ps 3: models.b: gone (Crashed)"
