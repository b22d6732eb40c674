"""The CRDs as files: made from the contract and from nothing else, structural, bounded, described, and small."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field

from evomerge_contract.base import Contract
from evomerge_operator.crd.cel import attach, rule
from evomerge_operator.crd.definitions import chart_files, definitions, files
from evomerge_operator.crd.schema import structural
from evomerge_operator.manifest import parse_manifest

ROOT = Path(__file__).parents[2]
EXAMPLES = [
    path
    for path in sorted((ROOT / "examples").rglob("*.yaml"))
    if (yaml.safe_load(path.read_text()) or {}).get("kind") == "EvoMerge"
]
FREE = {"spec.worker.podTemplate.spec"}
"""Where any field may stand: Kubernetes' own PodSpec, which it checks itself."""


@pytest.mark.parametrize(
    ("folder", "made"), [("crds", files()), ("charts/evomerge/files/crds", chart_files())], ids=["crds", "chart"]
)
def test_the_files_are_what_the_contract_makes(folder: str, made: dict[str, str]) -> None:
    found = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / folder).iterdir()}
    assert found.keys() == made.keys()
    for name, text in made.items():
        assert found[name] == text, f"{folder}/{name} is not what the contract makes: run `make crds`"


@pytest.mark.parametrize("name", files())
def test_a_file_is_under_256_kilobytes(name: str) -> None:
    assert len(files()[name].encode()) < 256_000


@pytest.mark.parametrize("name", definitions())
def test_every_field_is_described(name: str) -> None:
    plain = [place for place, node in _fields(_schema(name)) if not node.get("description")]
    assert plain == ["metadata"]


@pytest.mark.parametrize("name", definitions())
def test_every_text_list_and_mapping_is_bounded(name: str) -> None:
    bounds = {"string": {"maxLength", "enum", "format"}, "array": {"maxItems"}}
    open_ = []
    for place, node in _nodes(_schema(name), ""):
        wanted = {"maxProperties"} if "additionalProperties" in node else bounds.get(node["type"], set())
        if wanted and not wanted & node.keys() and place not in ("apiVersion", "kind", "metadata.name"):
            open_.append(place)
    assert open_ == []


@pytest.mark.parametrize("name", definitions())
def test_every_number_of_a_spec_is_bounded(name: str) -> None:
    numbers = [(p, n) for p, n in _nodes(_schema(name), "") if p.startswith("spec.") and n["type"] == "integer"]
    assert numbers
    assert [place for place, node in numbers if not {"minimum", "maximum"} <= node.keys()] == []


@pytest.mark.parametrize("name", definitions())
def test_unknown_fields_are_known_nowhere_but_in_a_pod(name: str) -> None:
    free = {p for p, node in _nodes(_schema(name), "") if node.get("x-kubernetes-preserve-unknown-fields")}
    assert free == (FREE if name == "evomerge.dev_evomerges.yaml" else set())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_example_is_a_manifest_without_mistakes(path: Path) -> None:
    assert parse_manifest(yaml.safe_load(path.read_text()), source=path.name, folder=path.parent)


def test_there_are_examples_for_one_machine_and_for_a_cluster() -> None:
    exported = ["export" in yaml.safe_load(path.read_text())["spec"] for path in EXAMPLES]
    assert set(exported) == {True, False}


class _Union(Contract):
    either: int | str


class _Open(Contract):
    text: str


class _Odd(Contract):
    number: Annotated[int, Field(multiple_of=3)]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_Union, ".either: a structural schema knows no unions"),
        (_Open, ".text: maxLength is missing; give it in the contract"),
        (_Odd, ".number: multipleOf has no place in a structural schema"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_when_the_schema_is_made(model: type[Contract], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}$"):
        structural(model)


def test_a_rule_for_a_field_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError, match="wieght"):
        attach(structural(_Open, fill=True), {"wieght": [rule("true", "")]})


def _schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = definitions()[name]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def _nodes(node: dict[str, Any], place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of a schema by its place."""
    yield place, node
    for name, child in node.get("properties", {}).items():
        yield from _nodes(child, f"{place}.{name}".removeprefix("."))
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(node.get(key), dict):
            yield from _nodes(node[key], place + mark)


def _fields(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Those that a person names; Kubernetes describes its own metadata."""
    for place, node in _nodes(schema, ""):
        if not place.endswith(("[]", "{}")) and place != "metadata.name":
            yield place, node
