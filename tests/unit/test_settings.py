"""The settings of `evomerge-operator`: each wrong one ends it with exit code 2 and a sentence that names it."""

import pytest

from evomerge_operator.process import Settings, main

_ALL = (
    "EVOMERGE_WORKER_IMAGE",
    "EVOMERGE_NAMESPACES",
    "EVOMERGE_LEASE",
    "EVOMERGE_PORT",
    "EVOMERGE_WORKER_TEMPLATE",
    "POD_NAMESPACE",
    "POD_NAME",
)
_NAME = "a name is lower-case letters, digits, hyphens and dots"


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment with nothing but an image."""
    for variable in _ALL:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("EVOMERGE_WORKER_IMAGE", "registry.example.com/worker:1")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("EVOMERGE_WORKER_IMAGE", "", "EVOMERGE_WORKER_IMAGE must name the worker's image"),
        ("EVOMERGE_PORT", "http", "EVOMERGE_PORT is 'http'; it must be a number from 1 to 65535"),
        ("EVOMERGE_PORT", "", "EVOMERGE_PORT is ''; it must be a number from 1 to 65535"),
        ("EVOMERGE_PORT", "0", "EVOMERGE_PORT is '0'; it must be a number from 1 to 65535"),
        ("EVOMERGE_PORT", "65536", "EVOMERGE_PORT is '65536'; it must be a number from 1 to 65535"),
        ("EVOMERGE_NAMESPACES", "a,B", f"EVOMERGE_NAMESPACES holds 'B'; {_NAME}"),
        ("EVOMERGE_NAMESPACES", "a/b", f"EVOMERGE_NAMESPACES holds 'a/b'; {_NAME}"),
        ("EVOMERGE_LEASE", "", f"EVOMERGE_LEASE holds ''; {_NAME}"),
        ("EVOMERGE_LEASE", "-evomerge", f"EVOMERGE_LEASE holds '-evomerge'; {_NAME}"),
        ("POD_NAMESPACE", "../evomerge", f"POD_NAMESPACE holds '../evomerge'; {_NAME}"),
        (
            "EVOMERGE_WORKER_TEMPLATE",
            '{"containers": []}',
            "EVOMERGE_WORKER_TEMPLATE must be a pod template as JSON, but containers: Extra inputs are not permitted",
        ),
    ],
)
def test_a_wrong_setting_ends_it_with_a_sentence(
    variable: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().err) == (2, f"evomerge-operator: {words}\n")


def test_an_image_is_all_that_must_be_set() -> None:
    settings = Settings.read()
    assert (settings.namespaces, settings.lease, settings.lease_namespace) == ((), "evomerge-operator", "default")
    assert (settings.port, settings.defaults.image) == (8080, "registry.example.com/worker:1")
    assert settings.identity


def test_namespaces_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_NAMESPACES", "team-a, team-b,")
    assert Settings.read().namespaces == ("team-a", "team-b")


def test_the_pods_name_is_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAME", "evomerge-7d9f")
    assert Settings.read().identity == "evomerge-7d9f"
